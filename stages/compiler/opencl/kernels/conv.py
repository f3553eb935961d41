"""Convolutions and matrix products: a work item computes a few neighbouring pixels of a group of filters, so that every loaded input serves all filters of the group.

Pruned weights are data, as on the processor: per group the list of the positions that any of its filters keeps, and their weights. One kernel serves every mask and rate of its shape.
Where everything is kept, positions are loops and need no list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import Group, pack
from stages.compiler.opencl.walk import Types, Walk, total, types, walk

GROUPS = (8, 4, 2, 1)  # filters of a work item; with 4 pixels each, 8 take 32 accumulators
BUSY = 512  # work items below which a smaller group pays: phone GPUs have some 250 to 400 lanes (from data sheets; not measured on a phone)
Window = tuple[tuple[int, int], ...]  # (places, floats from one to the next) of channels, rows and columns


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``window`` is empty where lists name the positions, else the first lies ``corner`` floats from an output pixel's place in the input; ``group`` filters a work item, ``filters`` in all."""

    walk: Walk
    window: Window
    corner: int
    group: int
    filters: int
    out: Layout
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of a "conv" step, nothing for any other."""
    step, out = placed.step, placed.output
    if step.op != "conv":
        return ()
    assert step.weight is not None and step.bias is not None
    weight = step.weight.reshape(len(step.weight), -1)
    over = walk(placed, step.attrs["stride"])
    group = _group(weight != 0, over)
    groups = (Group(0, -(-len(weight) // group), group, 1),)
    dense = bool(weight.all())
    kept = int((_union(weight != 0, group) * _sizes(len(weight), group)[:, None]).sum())
    if dense:
        data = whole(weight, step.bias, group)
    else:
        data = pack(weight, step.bias, groups, offsets(placed))[0]
    data = stored(data, storage)
    window, corner = (_window(placed), _corner(placed)) if dense else ((), 0)
    spec = Spec(over, window, corner, group, len(weight), out, step.epilogue, types(placed, storage, data))
    reason = f"{step.scheme.label}: groups of {group} filters, {kept} of {weight.size} weights" + ("" if dense else ", positions listed")
    macs = kept * out.shape[0] * out.shape[2] * out.shape[3]
    return (Kernel("conv", spec, step, data, f"{over.pixels}x{group}", macs, reason, total(over.items(groups[0].count), out)),)


def _group(mask: np.ndarray, over: Walk) -> int:
    """The group size with the least work: multiply-adds with what is padded, a load of the input for each position, and idle processors where there are few work items."""

    def cost(group: int) -> float:
        union = _union(mask, group)
        grid = over.items(len(union))
        return float(union.sum()) * over.pixels * (group + 1) * max(1.0, BUSY / (grid[0] * grid[1] * grid[2] * grid[3]))

    return min(GROUPS, key=cost)


def _union(mask: np.ndarray, group: int) -> np.ndarray:
    """(filters, positions) -> (groups, positions): whether any filter of a group keeps the position."""
    padded = np.zeros((-(-len(mask) // group) * group, mask.shape[1]), bool)
    padded[: len(mask)] = mask
    return np.asarray(padded.reshape(-1, group, mask.shape[1]).any(1))


def _sizes(filters: int, group: int) -> np.ndarray:
    """Real filters of each group."""
    return np.clip(filters - np.arange(-(-filters // group)) * group, 0, group)


def whole(weight: np.ndarray, bias: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """Weights as (groups, positions, filters of a group), the last group filled with zeros."""
    padded = np.zeros((-(-len(weight) // group) * group, weight.shape[1]), np.float32)
    padded[: len(weight)] = weight
    shift = np.zeros(len(padded), np.float32)
    shift[: len(weight)] = bias
    return {"w": np.ascontiguousarray(padded.reshape(-1, group, weight.shape[1]).transpose(0, 2, 1)).ravel(), "b": shift}


def _window(placed: Placed) -> Window:
    source, a, weight = placed.inputs[0], placed.step.attrs, placed.step.weight
    assert weight is not None
    return tuple(zip(weight.shape[1:], (source.channel, source.row * a["dilation"][0], a["dilation"][1]), strict=True))


def _corner(placed: Placed) -> int:
    """Floats from the place of an output pixel in the input back to the first position of its window."""
    padding = placed.step.attrs["padding"]
    return -int(padding[0] * placed.inputs[0].row + padding[1])


def stored(data: dict[str, np.ndarray], storage: str) -> dict[str, np.ndarray]:
    """Packed arrays as they lie in the GPU's memory; what is empty gets one element, for OpenCL has no empty buffers."""
    return {name: array if array.size else np.zeros(1, array.dtype) for name, array in (data | {"w": data["w"].astype(storage)}).items()}


def offsets(placed: Placed) -> np.ndarray:
    """Offset of each position (channel, row, column) from the output pixel's place in the input."""
    (channels, channel), (rows, row), (cols, col) = _window(placed)
    grid = np.arange(channels)[:, None, None] * channel + np.arange(rows)[:, None] * row + np.arange(cols) * col
    return (_corner(placed) + grid).ravel().astype(np.int32)


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code

    T, over, group = code.T, spec.walk, spec.group

    def body(o: Any, n: Any, g: Any, row: Any, tile: Any) -> None:
        col = code.first_pixel(over, tile)
        corner = T.Bind(code.at(over.x, n, 0, row, col) + spec.corner)
        channel = T.Bind(g * group)
        sums = code.accumulators(group * over.count, over.lanes)
        for f in range(group):
            bias = T.Bind(o.b.load(channel + f))
            for p in range(over.count):
                T.buffer_store(sums, T.broadcast(bias, over.lanes) if over.lanes > 1 else bias, [f * over.count + p])

        def position(source: Any, weights: Any) -> None:
            values = [T.Bind(o.x.load(source + p * over.lanes * over.x.pixel, over.lanes)) for p in range(over.count)]
            for f in range(group):
                weight = T.Bind(o.w.load(weights + f))
                for p, value in enumerate(values):
                    slot = f * over.count + p
                    T.buffer_store(sums, sums[slot] + value * (T.broadcast(weight, over.lanes) if over.lanes > 1 else weight), [slot])

        if spec.window:
            _loops(spec.window, corner, g, group, position)
        else:
            _listed(o, corner, g, group, position)
        for f in range(group):
            if spec.filters % group == 0:
                _store(o, spec, sums, f, (n, channel + f, row, col))
            else:
                with T.If(channel + f < spec.filters), T.Then():
                    _store(o, spec, sums, f, (n, channel + f, row, col))

    return code.function(name, spec.types, over.items(-(-spec.filters // group)), body, spec.out)


def _loops(window: Window, corner: Any, g: Any, group: int, position: Any) -> None:
    """All positions in order."""
    from stages.compiler.opencl.code import T

    (channels, channel), (rows, row), (cols, col) = window
    first = T.Bind(g * (channels * rows * cols * group))
    with T.serial(0, channels) as c, T.serial(0, rows) as i, T.serial(0, cols) as j:
        position(T.Bind(corner + c * channel + i * row + j * col), T.Bind(first + ((c * rows + i) * cols + j) * group))


def _listed(o: Any, corner: Any, g: Any, group: int, position: Any) -> None:
    """The positions that the group keeps."""
    from stages.compiler.opencl.code import T

    entry, count, first = (T.Bind(o.ptr.load(g * 3 + k)) for k in range(3))
    with T.serial(0, count) as k:
        position(T.Bind(corner + o.idx.load(entry + k)), T.Bind(first + k * group))


def _store(o: Any, spec: Spec, sums: Any, f: int, place: tuple[Any, Any, Any, Any]) -> None:
    """The results of one filter."""
    from stages.compiler.opencl import code

    n, channel, row, col = place
    for p in range(spec.walk.count):
        code.finish(o, sums[f * spec.walk.count + p], spec.epilogue, spec.walk, (n, channel, row, col + p * spec.walk.lanes), spec.walk.lanes)
