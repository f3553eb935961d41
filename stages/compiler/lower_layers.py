"""Lowering of what has weights or windows: convolutions, linear layers, pooling."""

from __future__ import annotations

import numpy as np

from stages.compiler.ir import Step
from stages.compiler.lowering import Lowering, Ref
from stages.graph.layer import Layer


def conv(lo: Lowering, layer: Layer) -> None:
    """A convolution: depthwise, or over all channels (a grouped one with zeros in between)."""
    a, weight, bias = layer.attrs, lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    assert weight is not None
    source = lo.plain(layer)
    weight = weight.astype(np.float32)
    depthwise = layer.is_depthwise and a["out_channels"] == a["in_channels"]
    if not depthwise and a["groups"] > 1:
        weight = _expand(weight, a["groups"])
    attrs = {"stride": a["stride"], "padding": a["padding"], "dilation": a["dilation"]}
    shift = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
    out = lo.value(layer.name, layer.shape, layer)
    op = "depthwise" if depthwise else "conv"
    lo.add(layer, Step(layer.name, op, (source.name,), out, attrs, weight, shift, module=layer.module, scheme=lo.scheme[layer.module], macs=layer.macs))


def _expand(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's weight (o, i / groups, kh, kw) with zeros for the channels of other groups: the gather kernel skips them."""
    filters, inner = weight.shape[:2]
    full = np.zeros((filters, inner * groups, *weight.shape[2:]), np.float32)
    each = filters // groups
    for g in range(groups):
        full[g * each : (g + 1) * each, g * inner : (g + 1) * inner] = weight[g * each : (g + 1) * each]
    return full


def linear(lo: Lowering, layer: Layer) -> None:
    """A matrix product is a convolution that spans its whole input: columns of a flattened (c, h, w) are its positions."""
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    assert weight is not None
    ref = lo.refs[layer.inputs[0]]
    source = lo.values[ref.value]
    if ref.form not in ("plain", "flat") or len(lo.graph[layer.inputs[0]].shape) != 2:
        lo.refuse(layer, "linear on more than two dimensions")
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    shift = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
    shaped = weight.astype(np.float32).reshape(len(weight), *source.shape[1:])
    out = lo.value(layer.name, layer.shape, layer)
    lo.add(layer, Step(layer.name, "conv", (source.name,), out, attrs, shaped, shift, module=layer.module, scheme=lo.scheme[layer.module], macs=layer.macs))


def _pool(lo: Lowering, layer: Layer, kind: str, rows: tuple[tuple[int, int, int], ...], cols: tuple[tuple[int, int, int], ...]) -> None:
    source = lo.plain(layer)
    out = lo.value(layer.name, layer.shape, layer)
    lo.add(layer, Step(layer.name, "pool", (source.name,), out, {"kind": kind, "rows": rows, "cols": cols}))


def _windows(layer: Layer, axis: int, size: int) -> tuple[tuple[int, int, int], ...]:
    """(first, behind the last, divisor) for each output of a max or average pooling along one axis, clipped to the image, as PyTorch counts them."""
    kernel, stride, padding = (layer.attrs[key][axis] for key in ("kernel", "stride", "padding"))
    found = []
    for index in range(layer.shape[2 + axis]):
        start = index * stride - padding
        stop = min(start + kernel, size + padding)
        whole = stop - start
        start, stop = max(start, 0), min(stop, size)
        found.append((start, stop, whole if layer.attrs.get("count_include_pad") else stop - start))
    return tuple(found)


def strided_pool(lo: Lowering, layer: Layer) -> None:
    """Max and average pooling with kernel, stride and padding."""
    shape = lo.plain(layer).shape
    _pool(lo, layer, "max" if layer.op == "max_pool2d" else "avg", _windows(layer, 0, shape[2]), _windows(layer, 1, shape[3]))


def _adaptive(size: int, outputs: int) -> tuple[tuple[int, int, int], ...]:
    bounds = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    return tuple((start, stop, stop - start) for start, stop in bounds)


def adaptive_pool(lo: Lowering, layer: Layer) -> None:
    """Average pooling to a given size; nothing when the size is the input's."""
    source = lo.plain(layer)
    if source.shape[2:] == layer.shape[2:]:
        lo.refs[layer.name] = Ref(source.name)
    else:
        _pool(lo, layer, "avg", _adaptive(source.shape[2], layer.shape[2]), _adaptive(source.shape[3], layer.shape[3]))


def mean(lo: Lowering, layer: Layer) -> None:
    """The mean over height and width: global average pooling."""
    source = lo.plain(layer)
    if tuple(layer.attrs["dims"]) != (2, 3) or len(lo.graph[layer.inputs[0]].shape) != 4:
        lo.refuse(layer, f"mean over dimensions {tuple(layer.attrs['dims'])}")
    _pool(lo, layer, "avg", _adaptive(source.shape[2], 1), _adaptive(source.shape[3], 1))
