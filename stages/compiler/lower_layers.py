"""Lowering of what has weights or windows: convolutions, linear layers, pooling; and of what is normalised over channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.compiler.ir import Step
from stages.compiler.lowering import Lowering
from stages.compiler.refs import CHANNELS_LAST, C, Digit, H, N, Ref, W
from stages.graph.layer import Layer

Windows = tuple[tuple[int, int, int], ...]


def conv(lo: Lowering, layer: Layer) -> None:
    """A convolution: depthwise, or over all channels (a grouped one with zeros in between)."""
    a, weight, bias = layer.attrs, lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    assert weight is not None
    _images(lo, layer)
    source = lo.plain(layer)
    weight = weight.astype(np.float32, copy=False)
    depthwise = layer.is_depthwise and a["out_channels"] == a["in_channels"]
    if not depthwise and a["groups"] > 1:
        weight = _expand(weight, a["groups"])
    attrs = {"stride": a["stride"], "padding": a["padding"], "dilation": a["dilation"]}
    _weighted(lo, layer, "depthwise" if depthwise else "conv", source.name, attrs, weight, bias, lo.new(layer, layer.shape))


def _weighted(lo: Lowering, layer: Layer, op: str, source: str, attrs: Mapping[str, object], weight: np.ndarray, bias: np.ndarray | None, made: Ref) -> None:
    shift = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
    lo.add(layer, Step(layer.name, op, (source,), made.value, attrs, weight, shift, module=layer.module, scheme=lo.scheme[layer.module], macs=layer.macs), made)


def _expand(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's weight (o, i / groups, kh, kw) with zeros for the channels of other groups: the gather kernel skips them."""
    filters, inner = weight.shape[:2]
    full = np.zeros((filters, inner * groups, *weight.shape[2:]), np.float32)
    each = filters // groups
    for g in range(groups):
        full[g * each : (g + 1) * each, g * inner : (g + 1) * inner] = weight[g * each : (g + 1) * each]
    return full


def linear(lo: Lowering, layer: Layer) -> None:
    """A matrix product: a convolution that spans its whole input where a flattened (c, h, w) comes in, in any order; else a 1x1 convolution over the last dimension."""
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    assert weight is not None
    weight, attrs = weight.astype(np.float32, copy=False), {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    flat = lo.ref(layer)
    n, *inner = lo.values[flat.value].shape
    if len(layer.shape) == 2 and all(digit.axis == N for digit in flat.dims[0]) and all(digit.axis != N for digit in flat.dims[1]):
        shaped = _columns(weight, flat.dims[1]).reshape(len(weight), *inner)
        _weighted(lo, layer, "conv", flat.value, attrs, shaped, bias, lo.new(layer, (n, len(weight))))
        return
    source = lo.channels_last(layer)
    n, _, h, w = lo.values[source.value].shape
    made = lo.new(layer, (n, h, w, len(weight)), CHANNELS_LAST)
    last = (Digit(C, 1, len(weight)),) if len(weight) > 1 else ()
    _weighted(lo, layer, "conv", source.value, attrs, weight[:, :, None, None], bias, Ref(made.value, (*source.dims[:-1], last)))


def _columns(weight: np.ndarray, digits: tuple[Digit, ...]) -> np.ndarray:
    """The columns of a matrix, counted by ``digits``, in the order of the axes c, h, w."""
    order = sorted(range(len(digits)), key=lambda k: (digits[k].axis, -digits[k].step))
    return np.ascontiguousarray(weight.reshape(len(weight), *(d.size for d in digits)).transpose(0, *(k + 1 for k in order)))


def _pool(lo: Lowering, layer: Layer, kind: str, rows: Windows, cols: Windows) -> Ref:
    source = lo.plain(layer)
    made = lo.new(layer, (*source.shape[:2], len(rows), len(cols)))
    lo.add(layer, Step(layer.name, "pool", (source.name,), made.value, {"kind": kind, "rows": rows, "cols": cols}), made)
    return made


def _windows(layer: Layer, axis: int, size: int) -> Windows:
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
    _images(lo, layer)
    shape = lo.plain(layer).shape
    _pool(lo, layer, "max" if layer.op == "max_pool2d" else "avg", _windows(layer, 0, shape[2]), _windows(layer, 1, shape[3]))


def _images(lo: Lowering, layer: Layer) -> None:
    """Refuse an image without a batch, and sequences."""
    if len(layer.shape) != 4:
        lo.refuse(layer, f"{layer.op} of a tensor of {len(layer.shape)} dimensions")


def _adaptive(size: int, outputs: int) -> Windows:
    bounds = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    return tuple((start, stop, stop - start) for start, stop in bounds)


def adaptive_pool(lo: Lowering, layer: Layer) -> None:
    """Average or max pooling to a given size; nothing when the size is the input's."""
    _images(lo, layer)
    source = lo.plain(layer)
    if source.shape[2:] == layer.shape[2:]:
        lo.refs[layer.name] = lo.ref(layer)
    else:
        kind = "max" if layer.op == "adaptive_max_pool2d" else "avg"
        _pool(lo, layer, kind, _adaptive(source.shape[2], layer.shape[2]), _adaptive(source.shape[3], layer.shape[3]))


def mean(lo: Lowering, layer: Layer) -> None:
    """The mean over height and width, wherever these dimensions lie: global average pooling."""
    ref, dims = lo.ref(layer), layer.attrs["dims"]
    if not _spans_the_image(lo, ref, dims):
        ref = lo.in_order(layer)  # a copy in which they do
    if not _spans_the_image(lo, ref, dims):
        lo.refuse(layer, f"mean over dimensions {tuple(dims)}")
    n, c, h, w = lo.values[ref.value].shape
    made = lo.new(layer, (n, c, 1, 1))
    lo.add(layer, Step(layer.name, "pool", (ref.value,), made.value, {"kind": "avg", "rows": _adaptive(h, 1), "cols": _adaptive(w, 1)}), made)
    left = tuple(() if k in dims else dim for k, dim in enumerate(ref.dims) if k not in dims or layer.attrs["keepdim"])
    lo.refs[layer.name] = Ref(made.value, left)


def _spans_the_image(lo: Lowering, ref: Ref, dims: Sequence[int]) -> bool:
    """Whether these dimensions of a view are all rows and columns of its Value, and nothing else."""
    _, _, h, w = lo.values[ref.value].shape
    return sorted((digit.axis, digit.size) for dim in dims for digit in ref.dims[dim]) == [(axis, size) for axis, size in ((H, h), (W, w)) if size > 1]


def layer_norm(lo: Lowering, layer: Layer) -> None:
    """Layer norm over the last dimension; its gain and shift are an "affine" of the epilogue."""
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    if len(layer.attrs["normalized_shape"]) != 1:
        lo.refuse(layer, f"layer_norm over the last {len(layer.attrs['normalized_shape'])} dimensions")
    source, channels = lo.channels_last(layer), layer.shape[-1]
    made = lo.like(layer, source)
    scale = np.ones(channels) if weight is None else weight.astype(np.float64)
    shift = np.zeros(channels) if bias is None else bias.astype(np.float64)
    attrs = {"eps": layer.attrs["eps"], "scale": scale, "shift": shift}
    lo.add(layer, Step(layer.name, "layer_norm", (source.value,), made.value, attrs, epilogue=(("affine",),), module=layer.module), made)


def softmax(lo: Lowering, layer: Layer) -> None:
    """Softmax over one dimension, which becomes the last for the moment: the channels."""
    dim, rank = layer.attrs["dim"], len(layer.shape)
    order = [*(k for k in range(rank) if k != dim), dim]
    source = lo.channels_last_of(layer, lo.ref(layer).permuted(order))
    made = lo.like(layer, source)
    lo.steps.append(Step(layer.name, "softmax", (source.value,), made.value))
    lo.refs[layer.name] = made.permuted([order.index(k) for k in range(rank)])
