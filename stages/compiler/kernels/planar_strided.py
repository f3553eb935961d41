"""Convolutions with stride 2 from planes to planes: every second pixel of two vectors makes one, which serves all filters of a group; sparsity as data.

Rows don't lie flat behind each other here, so a tile is a few vectors of one row; the last vector of a row overlaps the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, Shape, Step
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import pack
from stages.compiler.kernels.planar_conv import filter_groups, offsets
from stages.compiler.kernels.units import split, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

FILTERS, VECTORS = 8, 3  # sums in registers: filters times vectors of pixels
_LOOP, _TILE = 0.6, 40.0  # cycles per position and per tile beside the arithmetic
_MEASURED = 1.25  # times the model, on Zen 4: loads that cross cache lines


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x``: floats from image to image and from row to row of the input; ``segments`` as in planar_conv.py."""

    x: tuple[int, int]
    out: Layout
    extras: tuple[planar.Operand, ...]
    segments: tuple[tuple[int, int, int], ...]
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "conv" step with stride 2 from planes to planes, None for any other."""
    step, source, out = placed.step, placed.inputs[0], placed.output
    if step.op != "conv" or not planar.suits(placed) or not fits(step, source.shape, out.shape, target):
        return None
    assert step.weight is not None and step.bias is not None
    flat = step.weight.reshape(len(step.weight), -1)
    groups = filter_groups(len(flat), min(FILTERS, len(flat)))
    data, kept = pack(flat, step.bias, groups, offsets(placed))
    segments = tuple((g.start, g.count, g.lanes * g.vectors) for g in groups)
    spec = Spec((source.image, source.cols), out, planar.operands(placed), segments, step.epilogue)
    macs = kept * out.shape[0] * out.shape[2] * out.shape[3]
    starts, lanes = planar.columns(out.shape[3], out.cols, target)
    reason = f"{scheme.label}: planes, stride 2, groups of {segments[0][2]} filters, {kept} of {flat.size} weights"
    tile = f"{min(VECTORS, len(starts))}x{lanes} pixels x {segments[0][2]} channels"
    return Kernel("planar_strided", spec, step, data, tile, macs, reason, units(_nests(spec)))


def fits(step: Step, source: Shape, out: Shape, target: Target) -> bool:
    """Whether a "conv" step takes every second pixel."""
    return step.attrs["stride"] == (2, 2) and out[3] >= target.narrow[-1]


def cycles(weight: np.ndarray, out: Shape, target: Target) -> float:
    """Estimated time for weights (o, i, kh, kw) and a result of shape ``out``."""
    flat = weight.reshape(len(weight), -1) != 0
    starts, lanes = planar.columns(out[3], out[3], target)
    per_vector = 1.0 if target.fused_narrow and lanes == target.lanes else 0.5
    total = 0.0
    for group in filter_groups(len(flat), min(FILTERS, len(flat))):
        size = group.lanes
        positions = int(flat[group.start : group.start + group.count * size].reshape(group.count, size, -1).any(1).sum())
        for count, _, tiles in split(len(starts), VECTORS):
            each = max(size * count * per_vector, 0.5 * size + 2 * count * per_vector) + 0.6 * count * per_vector + _LOOP
            total += tiles * (positions * each + group.count * (_TILE + 2 * size * count))
    return _MEASURED * total * out[0] * out[2]


def _nests(spec: Spec) -> list[tuple[int, int, int]]:
    return [(spec.out.shape[0], spec.out.shape[2], count) for _, count, _ in spec.segments]


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T, (starts, lanes) = tir.T, planar.columns(spec.out.shape[3], spec.out.cols, target)

    def body(o: Any) -> None:
        before = 0
        for (first, count, filters), dims in zip(spec.segments, _nests(spec), strict=True):

            def visit(n: Any, y: Any, g: Any, first: int = first, filters: int = filters, before: int = before) -> None:
                channel = T.Bind(g * filters + first)
                with T.If(y == 0), T.Then(), T.serial(0, filters) as f:
                    plane = T.Bind(n * spec.out.image + (channel + f) * spec.out.channel)
                    planar.zero_outside(o, plane, spec.out, planar.span(spec.out), target.narrow)
                    planar.zero_columns(o, plane, spec.out, target.narrow)
                for size, begin, tiles in split(len(starts), VECTORS):
                    for tile in range(tiles):
                        columns = starts[begin + tile * size : begin + (tile + 1) * size]
                        _micro(o, spec, (columns, lanes), filters, (n, y), channel, g + before)

            tir.nest(o, units(_nests(spec)), dims, visit)
            before += count

    return tir.function(name, body)


def _micro(o: Any, spec: Spec, vectors: tuple[list[int], int], filters: int, place: tuple[Any, Any], channel: Any, group: Any) -> None:
    """The ``vectors`` (first columns, lanes) of one row times one group of filters."""
    from stages.compiler.kernels import tir
    from stages.compiler.kernels.planar_rows import Row, mask

    T, (n, y), (columns, lanes) = tir.T, place, vectors
    acc = T.alloc_buffer((len(columns) * filters * lanes,), "float32", scope="local")

    def slot(f: int, v: int) -> Any:
        return tir.at((f * len(columns) + v) * lanes, lanes)

    for f in range(filters):
        bias = o.b[channel + f]
        for v in range(len(columns)):
            T.buffer_store(acc, T.broadcast(bias, lanes) if lanes > 1 else bias, [slot(f, v)])
    corner = T.Bind(n * spec.x[0] + y * (2 * spec.x[1]))
    k0, count, w0 = (T.Bind(o.ptr[group * 3 + i]) for i in range(3))
    with T.serial(0, count) as k:
        source = T.Bind(o.idx[k0 + k] + corner)
        pixels = [Row(o.x, source + 2 * column, 2, lanes).tap(0) for column in columns]
        for f in range(filters):
            weight = o.w[w0 + k * filters + f]
            weight = T.Bind(T.broadcast(weight, lanes) if lanes > 1 else weight)
            for v, value in enumerate(pixels):
                T.buffer_store(acc, acc[slot(f, v)] + value * weight, [slot(f, v)])
    for f in range(filters):
        for v, column in enumerate(columns):  # a long epilogue too: in a loop over what is stored, floats where vectors overlap would get it twice
            planar.finish(o, acc[slot(f, v)], spec.epilogue, spec.extras, n, channel + f, y * spec.out.cols + column, lanes, spec.out, mask(spec.out.shape[3], lanes))
