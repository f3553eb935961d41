"""Lowering of what only moves floats, or not even that: reshape, permute, concat, slice, pad, channel shuffle, nearest-neighbour upsampling."""

from __future__ import annotations

from dataclasses import replace

from stages.compiler.lowering import Loop, Lowering
from stages.compiler.refs import Digit, Ref
from stages.graph.layer import Layer


def reshape(lo: Lowering, layer: Layer) -> None:
    """Another shape of the same elements in the same order: nothing moves."""
    ref = lo.ref(layer).reshaped(layer.shape)
    lo.refs[layer.name] = ref or lo.refuse(layer, f"{layer.op} from {lo.ref(layer).shape} to {layer.shape}")


def permute(lo: Lowering, layer: Layer) -> None:
    """Dimensions in another order: nothing moves until somebody reads it who needs another order."""
    lo.refs[layer.name] = lo.ref(layer).permuted(layer.attrs["dims"])


def channel_shuffle(lo: Lowering, layer: Layer) -> None:
    """(n, groups * each, h, w) -> (n, each * groups, h, w)."""
    groups, ref = layer.attrs["groups"], lo.ref(layer)
    split = ref.reshaped((ref.shape[0], groups, ref.shape[1] // groups, *ref.shape[2:]))
    mixed = split.permuted((0, 2, 1, *range(3, len(split.dims)))).reshaped(ref.shape) if split else None
    lo.refs[layer.name] = mixed or lo.refuse(layer, "channel_shuffle of a reshaped tensor")


def concat(lo: Lowering, layer: Layer) -> None:
    """Tensors side by side along one dimension: one copy each, most of which share.py makes unnecessary."""
    parts = [lo.ref(layer, index) for index in range(len(layer.inputs))]
    axes = parts[0].axes()
    out, position = lo.new(layer, layer.shape, axes), 0
    dim = layer.attrs["dim"]
    for index, part in enumerate(parts):
        lo.move(layer, part, _window(out, dim, position, part.shape[dim]), first=index == 0)
        position += part.shape[dim]
    lo.refs[layer.name] = out


def _window(out: Ref, dim: int, start: int, count: int) -> Ref:
    """Part of a whole Value along one dimension."""
    if not out.dims[dim]:
        return out
    axis = out.dims[dim][0].axis
    return replace(out.moved(axis, start), dims=(*out.dims[:dim], (Digit(axis, 1, count),), *out.dims[dim + 1 :]))


def slice_part(lo: Lowering, layer: Layer) -> None:
    """Part of a tensor along one dimension."""
    a, ref = layer.attrs, lo.ref(layer)
    part = ref.sliced(a["dim"], a["start"], a["step"], layer.shape[a["dim"]])
    if part is None:
        copied = lo.copy(layer, ref)
        part = copied.sliced(a["dim"], a["start"], a["step"], layer.shape[a["dim"]]) or lo.refuse(layer, "slice of a reshaped tensor")
    if part.shape != ref.shape:
        part = lo.copy(layer, part, part.axes())
    lo.refs[layer.name] = part


def select(lo: Lowering, layer: Layer) -> None:
    """One element of a dimension, which vanishes."""
    a, ref = layer.attrs, lo.ref(layer)
    one = ref.sliced(a["dim"], a["index"], 1, 1) or lo.refuse(layer, "select of a reshaped tensor")
    kept = lo.copy(layer, one, one.axes()) if ref.shape[a["dim"]] > 1 else one
    lo.refs[layer.name] = replace(kept, dims=(*kept.dims[: a["dim"]], *kept.dims[a["dim"] + 1 :]))


def pad(lo: Lowering, layer: Layer) -> None:
    """A tensor in the middle of a larger one that is filled with a value."""
    pads, ref = layer.attrs["pad"], lo.ref(layer)
    if min(pads) < 0:
        lo.refuse(layer, f"pad by {pads}")
    rank = len(layer.shape)
    before = [*reversed(pads[::2])]  # F.pad: last dimension first
    before = [0] * (rank - len(before)) + before
    axes = ref.axes()
    out = lo.new(layer, layer.shape, axes)
    inside = out
    for dim in range(rank):
        inside = _window(inside, dim, before[dim], ref.shape[dim])
    lo.move(layer, ref, inside, fill=layer.attrs["value"])
    lo.refs[layer.name] = out


def upsample(lo: Lowering, layer: Layer) -> None:
    """Every pixel ``scale`` times along each axis: (n, c, h, w) -> (n, c, h * s, w * t)."""
    source = lo.plain(layer)
    (n, c, h, w), out = source.shape, lo.new(layer, layer.shape)
    if layer.shape[2] % h or layer.shape[3] % w:
        lo.refuse(layer, f"upsample from {h}x{w} to {layer.shape[2]}x{layer.shape[3]}")
    s, t = layer.shape[2] // h, layer.shape[3] // w
    still = (0, 0, 0, 0)
    loops: list[Loop] = [
        (n, (1, 0, 0, 0), (1, 0, 0, 0)),
        (h, (0, 0, 1, 0), (0, 0, s, 0)),
        (s, still, (0, 0, 1, 0)),
        (w, (0, 0, 0, 1), (0, 0, 0, t)),
        (t, still, (0, 0, 0, 1)),
        (c, (0, 1, 0, 0), (0, 1, 0, 0)),
    ]
    lo.put(layer, source.name, out.value, [loop for loop in loops if loop[0] > 1])
    lo.refs[layer.name] = out
