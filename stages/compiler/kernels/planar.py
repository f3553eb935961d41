"""Planes: NCHW activations for kernels whose vectors run along pixels. What these kernels share: the Layout, loops over a plane, frames.

Groups of 4 or 8 filters fill vectors of 4 or 8 channels only; along pixels a vector is always full, and each loaded vector of pixels serves all filters of the group. So fine blocks run as
fast as coarse ones. All planes of one resolution have the same geometry: a frame of ``pad`` zero columns before each row, which is also the frame behind the row above, and
``pad`` zero rows above and below. A convolution that keeps the resolution is then a walk along flat vectors: a neighbour is a constant distance away, and results in frame columns are
replaced by zeros when they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.compiler.ir import Layout, round_up
from stages.compiler.kernels.kernel import Placed
from stages.compiler.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGNED = 16  # floats: planes and the first pixel of each begin at a cache line
_HALO = 0.15  # of a part's rows, that a depthwise layer reads beyond them
_SHARE = 1024  # bytes of a part: of smaller ones the processors' prefetchers ask for too much that is another core's; twice as many with a halo


def layout(shape: tuple[int, int, int, int], pad: int, wider: float = 1.0) -> Layout:
    """The Layout of planes of one resolution, for kernels that read up to ``pad`` pixels beyond the image. Rows begin at cache lines where they need be at most ``wider`` times as long for that.

    Planes have odd numbers of cache lines: the same pixels of planes at 1 KB, as those of 14x14 would be, share 4 of the 64 sets of a first-level cache (measured, Zen 3: 384 to 64 channels 97 -> 70 us).
    """
    cols = shape[3] + pad
    if round_up(cols, ALIGNED) <= wider * cols:
        cols = round_up(cols, ALIGNED)
    lead = -(pad * cols + pad) % ALIGNED
    origin = lead + pad * cols + pad
    plane = max(origin + round_up(shape[2] * cols, ALIGNED), lead + (shape[2] + 2 * pad) * cols + pad)
    return Layout(shape, 1, (pad, pad, pad, cols - shape[3] - pad), True, lead=lead, plane=(-(-plane // ALIGNED) | 1) * ALIGNED)


def is_plane(layout: Layout) -> bool:
    """Whether this is a Layout made here (images from the caller are planar too, but packed)."""
    return layout.planar and layout.plane > 0


@dataclass(frozen=True)
class Operand:
    """A further operand of an epilogue: ``full`` planes, or one number a channel; strides in floats."""

    full: bool
    origin: int
    image: int
    channel: int


def operands(placed: Placed) -> tuple[Operand, ...]:
    """The further operands of a step whose result is planes."""
    found = []
    for mode, x in zip(placed.modes, placed.inputs[1:], strict=True):
        found.append(Operand(True, x.origin, x.image, x.channel) if mode == "full" else Operand(False, x.origin, x.image, 1))
    return tuple(found)


def suits(placed: Placed) -> bool:
    """Whether operand, result and all full further operands of a step are planes."""
    full = [x for mode, x in zip(placed.modes, placed.inputs[1:], strict=True) if mode == "full"]
    return all(is_plane(x) for x in (placed.inputs[0], placed.output, *full))


def span(layout: Layout) -> int:
    """Floats from the first pixel of a plane to behind the last."""
    return (layout.shape[2] - 1) * layout.cols + layout.shape[3]


def vectors(layout: Layout, lanes: int) -> int:
    """Vectors of a flat walk over a plane."""
    return -(-span(layout) // lanes)


def wider(halo: int, target: Target) -> float:
    """How much longer the rows of planes with a depthwise layer (``halo`` > 0) may be to begin at cache lines (``layout``): flat walks compute the frame's columns too.

    A vector of 16 pixels is a row of 14 then: depthwise layers at 14x14 take half as long (measured, Granite Rapids).
    """
    return 1.07 if halo and target.lanes == ALIGNED else 1.0


def parts(layout: Layout, halo: int, threads: int) -> int:
    """Into how many parts of as many rows each a plane is divided, so that every thread has the same pixels in layer after layer and reads what it wrote. 1: whole images do that, or threads divide the planes.

    ``halo``: rows beyond its own that a depthwise layer reads for a part; where there is one, small planes are better divided by channels (split_k.py). Measured, two Granite Rapids cores: 3x3 layers of
    ResNet-18 at 5.3x on 56x56 are 1.8 times as fast as on one core, 1.0 to 1.3 where each core reads half of its input from the other one's cache.
    """
    n, _, rows, _ = layout.shape
    wanted = threads // gcd(threads, n)
    large = rows % wanted == 0 and rows // wanted * layout.cols * 4 >= (2 * _SHARE if halo else _SHARE)
    return wanted if large and halo <= _HALO * rows / wanted else 1


def dims(layout: Layout) -> tuple[int, int, int]:
    """The loops of a kernel that goes by planes: images, the parts of each plane, planes."""
    n, c = layout.shape[:2]
    return (n, layout.parts, c)


def columns(width: int, room: int, target: Target) -> tuple[list[int], int]:
    """(first column of each vector that covers a row of ``width`` pixels, their lanes): the widest vectors that fit the ``room`` from here to the beginning of the next row.

    A single vector may reach beyond the row into the frame; the last of several overlaps the one before: 28 -> 0, 12 (16 lanes); 14, room 16 -> 0 (16 lanes); 14, room 15 -> 0, 6 (8 lanes).
    """
    lanes = next((v for v in target.narrow if v <= room), 1)
    return [min(start, max(0, width - lanes)) for start in range(0, width, lanes)], lanes


def inside(layout: Layout, lanes: int) -> np.ndarray:
    """For each float of a flat walk 1 in the image, 0 in the frame."""
    place = np.arange(vectors(layout, lanes) * lanes)
    return ((place % layout.cols < layout.shape[3]) & (place < span(layout))).astype(np.float32)


def finish(o: Any, value: Any, items: Any, extras: Sequence[Operand], image: Any, channel: Any, pixel: Any, lanes: int, out: Layout, mask: Any = None) -> None:
    """Apply the epilogue to ``lanes`` results at float ``pixel`` after the first of a plane, and store them; where ``mask`` (a vector of conditions) is false, store zero."""
    from stages.compiler.kernels import epilogue, tir

    T, sources = tir.T, (o.e0, o.e1, o.e2)

    def operand(k: int) -> Any:
        e = extras[k]
        base = e.origin + image * e.image + channel * e.channel
        if e.full:
            return sources[k][tir.at(base + pixel, lanes)]
        return T.broadcast(sources[k][base], lanes) if lanes > 1 else sources[k][base]

    def channelwise() -> tuple[Any, Any]:
        pair = (o.w[channel], o.b[channel])
        return (T.broadcast(pair[0], lanes), T.broadcast(pair[1], lanes)) if lanes > 1 else pair

    result = epilogue.apply(items, value, lanes, operand, channelwise)
    if mask is not None:
        result = tir.tirx.Select(mask, result, tir.splat(0, lanes))
    tir.store(o.y, out.origin + image * out.image + channel * out.channel + pixel, result, lanes)


def zero_before(o: Any, start: Any, layout: Layout, choices: tuple[int, ...]) -> None:
    """Zero the plane at float ``start`` before its first pixel."""
    from stages.compiler.kernels import tir

    tir.fill(o.y, start, layout.origin, 0.0, choices)


def zero_behind(o: Any, start: Any, layout: Layout, written: int, choices: tuple[int, ...]) -> None:
    """Zero the plane at float ``start`` behind the ``written`` floats from its first pixel on that a flat walk stores."""
    from stages.compiler.kernels import tir

    tir.fill(o.y, start + layout.origin + written, layout.channel - layout.origin - written, 0.0, choices)


def zero_outside(o: Any, start: Any, layout: Layout, written: int, choices: tuple[int, ...]) -> None:
    """Zero the plane at float ``start`` before its first pixel, and behind the ``written`` floats that a flat walk stores."""
    zero_before(o, start, layout, choices)
    zero_behind(o, start, layout, written, choices)


def zero_frame(o: Any, start: Any, layout: Layout, part: Any, parts: int, choices: tuple[int, ...]) -> None:
    """Zero what belongs to part ``part`` of ``parts`` of the frame of the plane at float ``start``: columns behind its rows, what is before the first part and behind the last."""
    from stages.compiler.kernels import tir

    if parts == 1:
        zero_outside(o, start, layout, span(layout), choices)
        zero_columns(o, start, layout, choices)
        return
    with tir.T.If(part == 0), tir.T.Then():
        zero_before(o, start, layout, choices)
    with tir.T.If(part == parts - 1), tir.T.Then():
        zero_behind(o, start, layout, span(layout), choices)
    rows = layout.shape[2] // parts
    zero_columns(o, start, layout, choices, part * rows, part * rows + rows)


def zero_columns(o: Any, start: Any, layout: Layout, choices: tuple[int, ...], begin: Any = 0, end: Any = None) -> None:
    """Zero the frame columns behind the rows ``begin`` to ``end`` (all if not given) of the plane at float ``start``, for kernels that store rows; the last row has none."""
    from stages.compiler.kernels import tir

    between = layout.cols - layout.shape[3]
    if between and layout.shape[2] > 1:
        last = layout.shape[2] - 1
        with tir.T.serial(begin, last if end is None else tir.tirx.min(end, last)) as row:
            tir.fill(o.y, start + (layout.origin + layout.shape[3]) + row * layout.cols, between, 0.0, choices)
