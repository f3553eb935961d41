"""Lowering of what acts on each element alone: activations, batch norms, arithmetic of two tensors or of a tensor and a constant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stages.compiler.ir import Step
from stages.compiler.lowering import Lowering, Ref
from stages.errors import UsageError
from stages.graph.layer import Layer

_ARGUMENTS = {"leaky_relu": ("negative_slope",), "gelu": ("approximate",), "elu": ("alpha",), "softplus": ("beta", "threshold"), "hardtanh": ("min", "max")}


def _elementwise(
    lo: Lowering, layer: Layer, source: Ref, item: tuple[object, ...], *operands: str, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> None:
    out = lo.value(layer.name, lo.values[source.value].shape, layer)
    attrs = {} if scale is None else {"scale": scale, "shift": shift}
    lo.add(layer, Step(layer.name, "elementwise", (source.value, *operands), out, attrs, epilogue=(item,)), source.form)


def activation(lo: Lowering, layer: Layer) -> None:
    """An activation of any tensor, flattened or not."""
    arguments = tuple(layer.attrs[key] for key in _ARGUMENTS.get(layer.op, ()))
    source = lo.refs[layer.inputs[0]]
    if source.form not in ("plain", "flat"):
        lo.refuse(layer, f"{layer.op} of a reshaped tensor")
    _elementwise(lo, layer, source, (layer.op, *arguments))


def batch_norm(lo: Lowering, layer: Layer) -> None:
    """A batch norm in eval mode: a scale and a shift per channel, in double precision until they are folded."""
    mean, variance = lo.tensor(layer, "running_mean"), lo.tensor(layer, "running_var")
    if mean is None or variance is None:
        raise UsageError(f"Batch norm '{layer.name}' has no running statistics.", "Train with track_running_stats=True.")
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    gain = np.ones_like(mean, np.float64) if weight is None else weight.astype(np.float64)
    scale = gain / np.sqrt(variance.astype(np.float64) + layer.attrs["eps"])
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean.astype(np.float64) * scale
    source = Ref(lo.plain(layer).name)
    _elementwise(lo, layer, source, ("affine",), scale=scale, shift=shift)


_SCALAR: dict[str, Callable[[float], tuple[str, float]]] = {
    "add": lambda v: ("shift", v),
    "sub": lambda v: ("shift", -v),
    "mul": lambda v: ("scale", v),
    "div": lambda v: ("scale", 1.0 / v),
}
_REVERSED = {"add": "add", "mul": "mul", "sub": "rsub", "div": "rdiv"}


def binary(lo: Lowering, layer: Layer) -> None:
    """add, sub, mul, div: with a number, with a constant tensor, or of two activations."""
    if "value" in layer.attrs:
        _elementwise(lo, layer, lo.refs[layer.inputs[0]], _SCALAR[layer.op](layer.attrs["value"]))
        return
    constants = [i for i, name in enumerate(layer.inputs) if lo.graph[name].op == "constant"]
    if constants:
        _with_constant(lo, layer, constants[0])
    elif not _self_gate(lo, layer):
        _two_tensors(lo, layer)


def _with_constant(lo: Lowering, layer: Layer, index: int) -> None:
    """A parameter or buffer as operand: one number, or one a channel."""
    values = lo.tensor(lo.graph[layer.inputs[index]], "value")
    assert values is not None
    source = lo.plain(layer, 1 - index)
    rank = len(layer.shape)
    shape = (1,) * (rank - values.ndim) + values.shape
    if (index == 0 and layer.op in ("sub", "div")) or shape not in ((1,) * rank, (1, source.shape[1], *(1,) * (rank - 2))):
        lo.refuse(layer, f"{layer.op} with a constant of shape {values.shape}")
    flat = np.broadcast_to(values.astype(np.float64).reshape(-1), (source.shape[1],))
    ones, zeros = np.ones(source.shape[1]), np.zeros(source.shape[1])
    scale, shift = {"add": (ones, flat), "sub": (ones, -flat), "mul": (flat, zeros), "div": (ones / flat if layer.op == "div" else ones, zeros)}[layer.op]
    _elementwise(lo, layer, Ref(source.name), ("affine",), scale=scale, shift=shift)


def _self_gate(lo: Lowering, layer: Layer) -> bool:
    """x * hardsigmoid(x) is hard-swish, x * sigmoid(x) is swish."""
    if layer.op != "mul" or len(layer.inputs) != 2:
        return False
    for x, gate in (layer.inputs, layer.inputs[::-1]):
        made = lo.graph[gate]
        if made.op in ("hardsigmoid", "sigmoid") and made.inputs == (x,):
            _elementwise(lo, layer, lo.refs[x], ("hardswish" if made.op == "hardsigmoid" else "silu",))
            return True
    return False


def _two_tensors(lo: Lowering, layer: Layer) -> None:
    left, right = lo.refs[layer.inputs[0]], lo.refs[layer.inputs[1]]
    shapes = [lo.graph[name].shape for name in layer.inputs]
    a, b = lo.values[left.value].shape, lo.values[right.value].shape
    if left.form != right.form or left.form not in ("plain", "flat") or len(shapes[0]) != len(shapes[1]):
        lo.refuse(layer, f"{layer.op} of shapes {shapes[0]} and {shapes[1]}")
    if a == b or (b[:2] == a[:2] and b[2:] == (1, 1)):
        _elementwise(lo, layer, left, (layer.op, 0), right.value)
    elif a[:2] == b[:2] and a[2:] == (1, 1):
        _elementwise(lo, layer, right, (_REVERSED[layer.op], 0), left.value)
    else:
        lo.refuse(layer, f"{layer.op} of shapes {shapes[0]} and {shapes[1]}")
