"""Lowering of what only moves floats, or not even that: reshape, permute, channel shuffle, concat, slice, pad."""

from __future__ import annotations

from stages.compiler.ir import Step
from stages.compiler.lowering import Lowering, Ref
from stages.graph.layer import Layer


def reshape(lo: Lowering, layer: Layer) -> None:
    """Views that move no float, seen pixel-major: (n, c, 1, 1) <-> (n, c), flattening, and the first and last part of a channel shuffle."""
    ref, before, after = lo.refs[layer.inputs[0]], lo.graph[layer.inputs[0]].shape, layer.shape
    n, c, h, w = lo.values[ref.value].shape
    matrix = (h, w) == (1, 1)
    if after == before or (ref.form == "plain" and matrix and after in ((n, c), (n, c, 1, 1))):
        lo.refs[layer.name] = ref
    elif ref.form in ("plain", "flat") and after in ((n, c * h * w), (n, c, h, w)):
        lo.refs[layer.name] = Ref(ref.value, "flat" if len(after) == 2 else "plain")
    elif ref.form == "plain" and len(after) == 5 and after[0] == n and after[1] * after[2] == c and after[3:] == (h, w):
        lo.refs[layer.name] = Ref(ref.value, "grouped", after[1])
    elif ref.form == "shuffled" and after == (n, c, h, w):
        _shuffle(lo, layer, ref)
    else:
        lo.refuse(layer, f"{layer.op} from {before} to {after}")


def permute(lo: Lowering, layer: Layer) -> None:
    """The middle part of a channel shuffle; no other permutation leaves floats where pixel-major kernels expect them."""
    ref = lo.refs[layer.inputs[0]]
    if ref.form != "grouped" or tuple(layer.attrs["dims"]) != (0, 2, 1, 3, 4):
        lo.refuse(layer, f"permute {tuple(layer.attrs['dims'])}")
    lo.refs[layer.name] = Ref(ref.value, "shuffled", ref.groups)


def _shuffle(lo: Lowering, layer: Layer, ref: Ref) -> None:
    """Channel g of each group comes together: output channel i * groups + g is input channel g * (c / groups) + i."""
    _, c, h, w = lo.values[ref.value].shape
    out, each = lo.value(layer.name, layer.shape, layer), c // ref.groups
    for g in range(ref.groups):
        _copy(lo, layer, ref.value, out, (each, h, w), ((g * each, 1), (0, 1), (0, 1)), ((g, ref.groups), (0, 1), (0, 1)), first=g == 0)


def _copy(
    lo: Lowering, layer: Layer, source: str, out: str, counts: tuple[int, ...], read: tuple, write: tuple, first: bool = True, fill: float | None = None
) -> None:
    attrs = {"counts": counts, "source": read, "target": write, "first": first, "fill": fill}
    lo.add(layer, Step(layer.name, "copy", (source,), out, attrs))


_WHOLE = ((0, 1), (0, 1), (0, 1))


def concat(lo: Lowering, layer: Layer) -> None:
    """Tensors side by side along channels, rows or columns: one copy each."""
    axis = layer.attrs["dim"] - 1
    parts = [lo.plain(layer, i) for i in range(len(layer.inputs))]
    if axis < 0:
        lo.refuse(layer, "concat along the batch")
    out, position = lo.value(layer.name, layer.shape, layer), 0
    for index, part in enumerate(parts):
        write = tuple((position, 1) if k == axis else (0, 1) for k in range(3))
        _copy(lo, layer, part.name, out, part.shape[1:], _WHOLE, write, first=index == 0)
        position += part.shape[1 + axis]


def slice_part(lo: Lowering, layer: Layer) -> None:
    """Part of a tensor along channels, rows or columns."""
    axis, source = layer.attrs["dim"] - 1, lo.plain(layer)
    if axis < 0:
        lo.refuse(layer, "slice along the batch")
    out = lo.value(layer.name, layer.shape, layer)
    read = tuple((layer.attrs["start"], layer.attrs["step"]) if k == axis else (0, 1) for k in range(3))
    _copy(lo, layer, source.name, out, lo.values[out].shape[1:], read, _WHOLE)


def pad(lo: Lowering, layer: Layer) -> None:
    """A tensor in the middle of a larger one that is filled with a value."""
    pads, source = layer.attrs["pad"], lo.plain(layer)
    before = [*pads[::2], 0, 0, 0][:3]  # F.pad: last dimension first
    if min(pads) < 0 or len(pads) > 6:
        lo.refuse(layer, f"pad by {pads}")
    out = lo.value(layer.name, layer.shape, layer)
    write = ((before[2], 1), (before[1], 1), (before[0], 1))
    _copy(lo, layer, source.name, out, source.shape[1:], _WHOLE, write, fill=layer.attrs["value"])
