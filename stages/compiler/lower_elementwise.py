"""Lowering of what acts on each element alone: activations, batch norms, arithmetic of two tensors or of a tensor and a constant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stages.compiler.ir import Step
from stages.compiler.lowering import Lowering
from stages.compiler.refs import C, Digit, Ref
from stages.errors import UsageError
from stages.graph.layer import Layer

_ARGUMENTS = {"leaky_relu": ("negative_slope",), "gelu": ("approximate",), "elu": ("alpha",), "softplus": ("beta", "threshold"), "hardtanh": ("min", "max")}


def _elementwise(
    lo: Lowering, layer: Layer, source: Ref, item: tuple[object, ...], *operands: str, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> None:
    made = lo.like(layer, source)
    attrs = {} if scale is None else {"scale": scale, "shift": shift}
    lo.add(layer, Step(layer.name, "elementwise", (source.value, *operands), made.value, attrs, epilogue=(item,)), made)


def activation(lo: Lowering, layer: Layer) -> None:
    """An activation of any tensor, however it is seen."""
    arguments = tuple(layer.attrs[key] for key in _ARGUMENTS.get(layer.op, ()))
    _elementwise(lo, layer, lo.ref(layer), (layer.op, *arguments))


def batch_norm(lo: Lowering, layer: Layer) -> None:
    """A batch norm in eval mode: a scale and a shift per channel, in double precision until they are folded."""
    mean, variance = lo.tensor(layer, "running_mean"), lo.tensor(layer, "running_var")
    if mean is None or variance is None:
        raise UsageError(f"Batch norm '{layer.name}' has no running statistics.", "Train with track_running_stats=True.")
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    gain = np.ones_like(mean, np.float64) if weight is None else weight.astype(np.float64)
    scale = gain / np.sqrt(variance.astype(np.float64) + layer.attrs["eps"])
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean.astype(np.float64) * scale
    if len(layer.shape) == 3:
        lo.refuse(layer, "batch_norm of a tensor of 3 dimensions")
    _elementwise(lo, layer, lo.in_order(layer), ("affine",), scale=scale, shift=shift)


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
        _elementwise(lo, layer, lo.ref(layer), _SCALAR[layer.op](layer.attrs["value"]))
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
    source = lo.ref(layer, 1 - index)
    channels = lo.values[source.value].shape[1]
    shape = (1,) * (len(layer.shape) - values.ndim) + values.shape
    counted = tuple(digit for dim, size in zip(source.dims, shape, strict=True) if size > 1 for digit in dim)
    if (index == 0 and layer.op in ("sub", "div")) or source.shape != layer.shape or (values.size > 1 and counted != (Digit(C, 1, channels),)):
        lo.refuse(layer, f"{layer.op} with a constant of shape {values.shape}")
    flat = np.broadcast_to(values.astype(np.float64).reshape(-1), (channels,))
    ones, zeros = np.ones(channels), np.zeros(channels)
    scale, shift = {"add": (ones, flat), "sub": (ones, -flat), "mul": (flat, zeros), "div": (ones / flat if layer.op == "div" else ones, zeros)}[layer.op]
    _elementwise(lo, layer, source, ("affine",), scale=scale, shift=shift)


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
    left, right = lo.ref(layer, 0), lo.ref(layer, 1)
    if not (_fits(lo, left, right) or _fits(lo, right, left)) and len(left.dims) == len(right.dims):
        left, right = lo.in_order(layer, 0), lo.in_order(layer, 1)
    if _fits(lo, left, right):
        _elementwise(lo, layer, left, (layer.op, 0), right.value)
    elif _fits(lo, right, left):
        _elementwise(lo, layer, right, (_REVERSED[layer.op], 0), left.value)
    else:
        lo.refuse(layer, f"{layer.op} of shapes {left.shape} and {right.shape}")


def _fits(lo: Lowering, source: Ref, operand: Ref) -> bool:
    """Whether ``operand`` has the same elements as ``source`` at the same places, or one number a channel of each image."""
    a, b = lo.values[source.value].shape, lo.values[operand.value].shape
    if a == b:
        return source.dims == operand.dims
    dims = ((),) * (len(source.dims) - len(operand.dims)) + operand.dims
    alike = len(dims) == len(source.dims) and all(
        theirs == ours or (not theirs and all(d.axis > C for d in ours)) for ours, theirs in zip(source.dims, dims, strict=True)
    )
    return b == (*a[:2], 1, 1) and alike
