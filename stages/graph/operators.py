"""From aten operators to the canonical operations of Layer: one small function per operator, in one table. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Attributes = dict[str, Any]
Args = Mapping[str, Any]  # schema names of the aten operator -> values; tensors are fx nodes
Canonical = tuple[str, list[Any], Attributes, dict[str, Any]]  # op, tensor operands, attrs, parameters by role


def pair(value: Any) -> tuple[int, int]:
    """(h, w) of an int, a one-element or a two-element list."""
    if isinstance(value, int):
        return (value, value)
    return (int(value[0]), int(value[-1]))


def shape_of(node: Any) -> tuple[int, ...]:
    """Output shape of an fx node."""
    return tuple(int(d) for d in node.meta["val"].shape)


def rank_of(node: Any) -> int:
    """Number of dimensions of an fx node's result."""
    return len(node.meta["val"].shape)


def _conv2d(a: Args) -> Canonical | None:
    weight, (kernel_h, kernel_w) = a["weight"], shape_of(a["weight"])[2:]
    stride, dilation = pair(a["stride"]), pair(a["dilation"])
    padding = a["padding"]
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        spans = (dilation[0] * (kernel_h - 1), dilation[1] * (kernel_w - 1))
        if spans[0] % 2 or spans[1] % 2:
            return None  # one pixel more on one side: no symmetric form
        padding = (spans[0] // 2, spans[1] // 2)
    out, per_group = shape_of(weight)[:2]
    attrs = {
        "stride": stride,
        "padding": pair(padding),
        "dilation": dilation,
        "groups": int(a["groups"]),
        "kernel": (kernel_h, kernel_w),
        "in_channels": per_group * int(a["groups"]),
        "out_channels": out,
    }
    return "conv2d", [a["input"]], attrs, {"weight": weight, "bias": a.get("bias")}


def _linear(a: Args) -> Canonical:
    out, inner = shape_of(a["weight"])
    return "linear", [a["input"]], {"in_features": inner, "out_features": out}, {"weight": a["weight"], "bias": a.get("bias")}


def _batch_norm(a: Args) -> Canonical | None:
    if a["training"]:
        return None
    roles = {role: a[role] for role in ("weight", "bias", "running_mean", "running_var")}
    return "batch_norm", [a["input"]], {"eps": float(a["eps"])}, roles


def _layer_norm(a: Args) -> Canonical:
    attrs = {"normalized_shape": tuple(a["normalized_shape"]), "eps": float(a["eps"])}
    return "layer_norm", [a["input"]], attrs, {"weight": a.get("weight"), "bias": a.get("bias")}


def _unary(op: str, *names: str) -> Callable[[Args], Canonical]:
    def build(a: Args) -> Canonical:
        return op, [a["self"]], {name: a[name] for name in names}, {}

    return build


def _clip(a: Args) -> Canonical | None:
    low, high = a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
    if (low, high) == (0, 6):
        return "relu6", [a["self"]], {}, {}
    if low == 0 and high is None:
        return "relu", [a["self"]], {}, {}
    if isinstance(low, int | float) and isinstance(high, int | float):
        return "hardtanh", [a["self"]], {"min": float(low), "max": float(high)}, {}
    return None


def _binary(op: str) -> Callable[[Args], Canonical | None]:
    def build(a: Args) -> Canonical | None:
        if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
            return None
        left, right = a["self"], a["other"]
        if isinstance(right, int | float):
            return op, [left], {"value": float(right)}, {}
        return op, [left, right], {}, {}

    return build


def _max_pool(a: Args) -> Canonical | None:
    if pair(a["dilation"]) != (1, 1):
        return None
    kernel = pair(a["kernel_size"])
    attrs = {"kernel": kernel, "stride": pair(a["stride"]) if a["stride"] else kernel, "padding": pair(a["padding"]), "ceil_mode": bool(a["ceil_mode"])}
    return "max_pool2d", [a["self"]], attrs, {}


def _avg_pool(a: Args) -> Canonical | None:
    if a["divisor_override"] is not None:
        return None
    kernel = pair(a["kernel_size"])
    attrs = {
        "kernel": kernel,
        "stride": pair(a["stride"]) if a["stride"] else kernel,
        "padding": pair(a["padding"]),
        "ceil_mode": bool(a["ceil_mode"]),
        "count_include_pad": bool(a["count_include_pad"]),
    }
    return "avg_pool2d", [a["self"]], attrs, {}


def _adaptive_pool(a: Args) -> Canonical:
    return "adaptive_avg_pool2d", [a["self"]], {"size": pair(a["output_size"])}, {}


def _adaptive_max_pool(a: Args) -> Canonical:
    return "adaptive_max_pool2d", [a["self"]], {"size": pair(a["output_size"])}, {}


def _upsample(a: Args) -> Canonical:
    return "upsample_nearest2d", [a.get("input", a.get("self"))], {}, {}


def _mean(a: Args) -> Canonical | None:
    if a["dim"] is None or a["dtype"] is not None:
        return None
    dims = tuple(sorted(d % rank_of(a["self"]) for d in a["dim"]))
    return "mean", [a["self"]], {"dims": dims, "keepdim": bool(a["keepdim"])}, {}


def _flatten(a: Args) -> Canonical:
    rank = rank_of(a["self"])
    return "flatten", [a["self"]], {"start": a["start_dim"] % rank, "end": a["end_dim"] % rank}, {}


def _reshape(a: Args) -> Canonical:
    return "reshape", [a["self"]], {"shape": ()}, {}  # trace fills in the resulting shape


def _permute(a: Args) -> Canonical:
    rank = rank_of(a["self"])
    return "permute", [a["self"]], {"dims": tuple(d % rank for d in a["dims"])}, {}


def _transpose(a: Args) -> Canonical:
    rank = rank_of(a["self"])
    dims = list(range(rank))
    first, second = a["dim0"] % rank, a["dim1"] % rank
    dims[first], dims[second] = second, first
    return "permute", [a["self"]], {"dims": tuple(dims)}, {}


def _concat(a: Args) -> Canonical:
    return "concat", list(a["tensors"]), {"dim": a["dim"] % rank_of(a["tensors"][0])}, {}


def _slice(a: Args) -> Canonical:
    dim = a["dim"] % rank_of(a["self"])
    size = shape_of(a["self"])[dim]
    start = min(max((a["start"] or 0) + (size if (a["start"] or 0) < 0 else 0), 0), size)
    stop = size if a["end"] is None else min(a["end"] + (size if a["end"] < 0 else 0), size)
    return "slice", [a["self"]], {"dim": dim, "start": start, "stop": max(stop, start), "step": int(a["step"])}, {}


def _select(a: Args) -> Canonical:
    dim = a["dim"] % rank_of(a["self"])
    return "select", [a["self"]], {"dim": dim, "index": int(a["index"]) % shape_of(a["self"])[dim]}, {}


def _channel_shuffle(a: Args) -> Canonical:
    return "channel_shuffle", [a["self"]], {"groups": int(a["groups"])}, {}


def _pad(a: Args) -> Canonical | None:
    if a.get("mode", "constant") != "constant":
        return None
    return "pad", [a["self"]], {"pad": tuple(int(p) for p in a["pad"]), "value": float(a.get("value") or 0.0)}, {}


def _softmax(a: Args) -> Canonical:
    return "softmax", [a["self"]], {"dim": a["dim"] % rank_of(a["self"])}, {}


IDENTITIES = frozenset(
    {"dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "type_as"}
)
IGNORED = frozenset({"_assert_tensor_metadata", "sym_size", "sym_constrain_range_for_size"})

FIRST_OF_SEVERAL = frozenset({"adaptive_max_pool2d", "max_pool2d_with_indices"})  # operators of which networks use the first result alone

RULES: dict[str, Callable[[Args], Canonical | None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": _unary("relu"),
    "relu6": _unary("relu6"),
    "hardtanh": _clip,
    "clamp": _clip,
    "clamp_min": _clip,
    "hardswish": _unary("hardswish"),
    "hardsigmoid": _unary("hardsigmoid"),
    "leaky_relu": _unary("leaky_relu", "negative_slope"),
    "silu": _unary("silu"),
    "sigmoid": _unary("sigmoid"),
    "special_expit": _unary("sigmoid"),
    "gelu": _unary("gelu", "approximate"),
    "tanh": _unary("tanh"),
    "mish": _unary("mish"),
    "elu": _unary("elu", "alpha"),
    "softplus": _unary("softplus", "beta", "threshold"),
    "add": _binary("add"),
    "sub": _binary("sub"),
    "mul": _binary("mul"),
    "div": _binary("div"),
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    "upsample_nearest2d": _upsample,
    "mean": _mean,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "unsqueeze": _reshape,
    "squeeze": _reshape,
    "unflatten": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "cat": _concat,
    "slice": _slice,
    "select": _select,
    "channel_shuffle": _channel_shuffle,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "softmax": _softmax,
}
