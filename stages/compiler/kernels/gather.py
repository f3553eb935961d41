"""Convolutions and linear layers of any kernel, stride and dilation, dense or sparse: vectors along the filters of a group, which share their kept positions.

A position is one (kernel row, kernel column, input channel). Every group of filters keeps the union of its filters' non-zero positions; block-punched, pattern (shared over a block of
filters), block-based and dense weights differ in nothing but that list, which the kernel reads as data: one compiled kernel serves every mask and rate of its shape.
The scheme's idea is block-punched pruning (NPAS, section 4.1); the loop is a gather of input floats times a vector of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, Step, View, costly, merge
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import LINE, Group, Stream, candidates, choose_groups, pack, positions, segments, stream, visits
from stages.compiler.kernels.units import WANTED, split, units
from stages.compiler.target import Target
from stages.compiler.tiles import Tile, Window, chains
from stages.schemes.scheme import LayerScheme

L2_BYTES = 512 * 1024  # weights or input that stay this small are read again and again without harm
MANY = 8  # groups: as many can be divided among a few threads without dividing their tiles
AT_ONCE = 12  # cache lines that a tile asks for in the beginning where it is no more, not among its positions (measured, Zen 3: 10, 160 to 960 channels at 7x7, 127 -> 110 us; 107, 960 to 160, 155 -> 190)


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x`` are (image, row, pixel) strides in floats from one output pixel to the next; ``segments`` are (first channel, groups, lanes, vectors).

    ``claiming``: a tile asks for the lines of the next one's results. ``at_once``: where the next group's weights are asked for, each tile asks for its share in the beginning.
    ``gate``: where channel 0 of the first pixel lies, if the last operand is a gate, one number for each input channel, by which the weights are multiplied; else None.
    """

    dims: tuple[int, int, int]
    x: tuple[int, int, int]
    y: View
    out: Layout
    extras: tuple[View, ...]
    segments: tuple[tuple[int, int, int, int], ...]
    rows: int
    cols: int
    pixels_outer: bool
    epilogue: Epilogue
    streamed: Stream
    claiming: bool
    at_once: bool
    gate: int | None


@dataclass(frozen=True)
class Choice:
    """What is tuned: groups of ``vectors`` vectors of ``lanes`` filters, tiles of ``rows`` x ``cols`` pixels, and whether the loop over pixels or that over groups is the outer one."""

    lanes: int
    vectors: int
    rows: int
    cols: int
    pixels_outer: bool

    @property
    def handicap(self) -> float:
        """By how much it must win: nothing, all choices compute the same sums."""
        return 1.0


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "conv" step with the tile that the model of tiles.py expects to be the fastest, None for any other step."""
    step = placed.step
    if step.op != "conv" or step.weight is None:
        return None
    dims, weight = walk(placed)[0], positions(step.weight)
    groups, tile = choose_groups(weight, dims, target, _window(step))
    choice = Choice(groups[0].lanes, groups[0].vectors, tile.rows, tile.cols, _pixels_outer(dims, tile, placed.inputs[0], step.weight))
    return _kernel(placed, scheme, target, choice, weight)


def chosen(placed: Placed, scheme: LayerScheme, target: Target, choice: Choice) -> Kernel:
    """The kernel of a "conv" step with a choice of ``choices``, or one that was measured where the same pixels lie in rows of another length."""
    assert placed.step.weight is not None
    return _kernel(placed, scheme, target, _fitted(choice, walk(placed)[0]), positions(placed.step.weight))


def _fitted(choice: Choice, dims: tuple[int, int, int]) -> Choice:
    """``choice`` with as many pixels a tile in rows that aren't longer or more than there are: 3 x 2 of 7 x 7 pixels are 1 x 6 where all rows are merged to one."""
    rows, cols = min(choice.rows, dims[1]), min(choice.cols, dims[2])
    pixels = choice.rows * choice.cols
    if rows < choice.rows:
        cols = min(pixels // rows, dims[2])
    elif cols < choice.cols:
        rows = min(pixels // cols, dims[1])
    return replace(choice, rows=rows, cols=cols)


def choices(placed: Placed, target: Target) -> list[tuple[float, Choice]]:
    """(cycles by the model of tiles.py, Choice) of all that a "conv" step may choose from; none for any other step. The model doesn't tell the loop orders apart."""
    step = placed.step
    if step.op != "conv" or step.weight is None or placed.output.planar:
        return []
    found = candidates(positions(step.weight), walk(placed)[0], target, _window(step))
    return [(cost, Choice(t.lanes, t.vectors, t.rows, t.cols, outer)) for cost, t in found for outer in (True, False)]


def _window(step: Step) -> Window:
    assert step.weight is not None
    _, channels, height, width = step.weight.shape
    return Window((height, width), step.attrs["stride"], channels)


def _kernel(placed: Placed, scheme: LayerScheme, target: Target, choice: Choice, weight: np.ndarray) -> Kernel:
    """``weight`` is the step's as (filters, positions)."""
    step, out = placed.step, placed.output
    assert step.weight is not None and step.bias is not None
    dims, x, y, extras = walk(placed)
    groups = segments(weight.shape[0], choice.lanes, choice.vectors, target)
    data, kept = pack(weight, step.bias, groups, offsets(placed), visits(*step.weight.shape[1:]))
    ahead = stream(data, choice.lanes * choice.vectors, not choice.pixels_outer, target)
    tiles = dims[0] * -(-dims[1] // choice.rows) * -(-dims[2] // choice.cols) * sum(g.count for g in groups)
    at_once = ahead == "group" and target.reach.ahead > 0 and data["w"].size <= AT_ONCE * LINE * tiles
    tile = (choice.rows, choice.cols, choice.pixels_outer)
    gate = placed.inputs[0].origin if step.attrs.get("gate") else None
    further = extras if gate is None else extras[:-1]
    spec = Spec(dims, x[1:], y, out, further, _segments(groups), *tile, step.epilogue, ahead, target.claims(out.size), at_once, gate)
    macs = kept * out.shape[0] * out.shape[2] * out.shape[3]
    label = Tile(choice.rows, choice.cols, choice.lanes, choice.vectors).label
    scratch = 0 if gate is None else data["w"].nbytes
    return Kernel("gather", spec, step, data, label, macs, _reason(scheme, groups, weight.size, kept), units(n.dims for n in _nests(spec)), scratch, choice)


def walk(placed: Placed) -> tuple[tuple[int, int, int], View, View, tuple[View, ...]]:
    """(images, rows, columns) of output pixels, and the views of the input's corresponding pixels, of the output and of the further operands, merged where they lie dense enough."""
    stride, (n, _, h, w) = placed.step.attrs["stride"], placed.output.shape
    source = placed.inputs[0]
    x = (0, source.image, source.row * stride[0], source.pitch * stride[1])
    dims, views = merge((n, h, w), (x, placed.output.view, *placed.extras))
    return dims, views[0], views[1], views[2:]


def offsets(placed: Placed) -> np.ndarray:
    """Float offset of each position (channel, row, column) from the output pixel's place in the input."""
    attrs, source = placed.step.attrs, placed.inputs[0]
    assert placed.step.weight is not None
    _, channels, kh, kw = placed.step.weight.shape
    rows = np.arange(kh) * attrs["dilation"][0] - attrs["padding"][0]
    cols = np.arange(kw) * attrs["dilation"][1] - attrs["padding"][1]
    grid = source.origin + np.arange(channels)[:, None, None] * source.channel + rows[:, None] * source.row + cols * source.pitch
    return grid.ravel().astype(np.int32)


def _segments(groups: tuple[Group, ...]) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((g.start, g.count, g.lanes, g.vectors) for g in groups)


def _pixels_outer(dims: tuple[int, int, int], tile: Tile, source: Layout, weight: np.ndarray) -> bool:
    """Whether weights are read again for every tile of pixels (else the input for every group): whichever moves fewer bytes beyond the first-level cache."""
    n, h, w = dims
    tiles = n * -(-h // tile.rows) * -(-w // tile.cols)
    groups = -(-weight.shape[0] // (tile.lanes * tile.vectors))
    by_pixels, by_groups = weight.size * 4 * tiles, source.size * 4 * groups
    return by_pixels <= by_groups or (weight.size * 4 <= L2_BYTES and source.size * 4 > L2_BYTES)


def _reason(scheme: LayerScheme, groups: tuple[Group, ...], dense: int, kept: int) -> str:
    sizes = "+".join(f"{g.count}x{g.lanes * g.vectors}" for g in groups)
    return f"{scheme.label}: groups of filters {sizes}, {kept} of {dense} weights"


@dataclass(frozen=True)
class _Tiles:
    """Tiles of one size: (rows, columns) of pixels, the first pixel, and how many there are (images, rows of tiles, columns of tiles)."""

    size: tuple[int, int]
    corner: tuple[int, int]
    counts: tuple[int, int, int]


@dataclass(frozen=True)
class _Nest:
    """One nest of loops: ``dims`` flattened outermost first. Inside there are ``tiles`` of one size and the ``segments`` that each of them does (one of them is a loop of its own in ``dims`` if ``single``);
    or, where ``tiles`` are several, all of them for one group."""

    dims: tuple[int, ...]
    tiles: tuple[_Tiles, ...]
    segments: tuple[int, ...]
    single: bool


def _nests(spec: Spec) -> list[_Nest]:
    """Tiles outermost with all groups inside each, or single groups: outermost, or innermost where the tiles alone are too few to divide.

    Many groups whose weights come from afar have the tiles of all sizes inside: a nest for each size would read the weights again.
    """
    found: list[_Nest] = []
    every = tuple(range(len(spec.segments)))
    tiles = [
        _Tiles((rows, cols), (row0, col0), (spec.dims[0], row_tiles, col_tiles))
        for rows, row0, row_tiles in split(spec.dims[1], spec.rows)
        for cols, col0, col_tiles in split(spec.dims[2], spec.cols)
    ]
    if len(tiles) > 1 and spec.streamed == "group" and spec.segments[0][1] >= MANY:
        return [_Nest((segment[1],), tuple(tiles), (index,), True) for index, segment in enumerate(spec.segments)]
    for part in tiles:
        if spec.pixels_outer and prod(part.counts) >= WANTED // 2:
            found.append(_Nest(part.counts, (part,), every, False))
            continue
        for index, segment in enumerate(spec.segments):
            dims = (*part.counts, segment[1]) if spec.pixels_outer else (segment[1], *part.counts)
            found.append(_Nest(dims, (part,), (index,), True))
    return found


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import gated, tir

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)
        if spec.gate is not None:
            sizes = [(count, lanes * vectors) for _, count, lanes, vectors in spec.segments]
            gated.scale_weights(o, (o.e0, o.e1, o.e2)[len(spec.extras)], sizes, lambda k: o.idx[k] - spec.gate, target.narrow)
        nests = _nests(spec)
        for nest in nests:
            tir.nest(o, units(n.dims for n in nests), nest.dims, _walker(o, spec, nest, target))

    return tir.function(name, body, multiplies=target)


def _walker(o: Any, spec: Spec, nest: _Nest, target: Target) -> Callable[..., None]:
    """What happens inside the loops of ``nest``."""
    from stages.compiler.kernels import tir

    T = tir.T

    def pixel(tiles: _Tiles, n: Any, i: Any, j: Any) -> tuple[Any, Any, Any]:
        return (n, i * tiles.size[0] + tiles.corner[0], j * tiles.size[1] + tiles.corner[1])

    def visit(*indices: Any) -> None:
        if len(nest.tiles) > 1:
            before = 0
            for tiles in nest.tiles:
                with T.serial(0, tiles.counts[0]) as n, T.serial(0, tiles.counts[1]) as i, T.serial(0, tiles.counts[2]) as j:
                    micro(tiles, pixel(tiles, n, i, j), nest.segments[0], indices[0], _ordinal(tiles, n, i, j) + before)
                before += prod(tiles.counts)
            return
        (tiles,) = nest.tiles
        n, i, j = indices[-3:] if nest.single and not spec.pixels_outer else indices[:3]
        if nest.single:
            micro(tiles, pixel(tiles, n, i, j), nest.segments[0], indices[3] if spec.pixels_outer else indices[0], _ordinal(tiles, n, i, j))
            return
        for index in nest.segments:
            with T.serial(0, spec.segments[index][1]) as g:
                micro(tiles, pixel(tiles, n, i, j), index, g, 0)

    def micro(tiles: _Tiles, pixel: tuple[Any, Any, Any], segment: int, g: Any, ordinal: Any) -> None:
        ahead = (ordinal, sum(prod(t.counts) for t in nest.tiles)) if spec.streamed == "group" else None
        _micro(o, spec, tiles.size, pixel, spec.segments[segment], (g, _first(spec, segment)), ahead, target)

    return visit


def _claim(o: Any, spec: Spec, pixel: tuple[Any, Any, Any], block: tuple[int, int], g: Any, channel: Any, group: int) -> None:
    """Ask for the lines of ``group`` results of each pixel of the tile at ``pixel``, to write them. Of two groups that share lines, each asks for those of every second pixel."""
    from stages.compiler.kernels import tir

    T, (n, y, x) = tir.T, pixel
    shared = group < LINE
    rows_apart = shared and block[1] % 2 == 1 and block[0] > 1
    corner = spec.y[0] + n * spec.y[1] + y * spec.y[2] + x * spec.y[3] + channel
    if shared:
        corner = corner + tir.tirx.truncmod(g, 2) * (spec.y[2] if rows_apart else spec.y[3])
    corner = T.Bind(corner)
    for r in range(0, block[0], 2 if rows_apart else 1):
        for c in range(0, block[1], 2 if shared and not rows_apart else 1):
            for start in range(0, group, LINE):
                tir.claim(o.y, corner + (r * spec.y[2] + c * spec.y[3] + start))


def _ordinal(tiles: _Tiles, n: Any, i: Any, j: Any) -> Any:
    """The number of a tile among those of its size."""
    return (n * tiles.counts[1] + i) * tiles.counts[2] + j


def _first(spec: Spec, index: int) -> int:
    """Number of the first group of a segment."""
    return sum(count for _, count, _, _ in spec.segments[:index])


def _micro(
    o: Any,
    spec: Spec,
    block: tuple[int, int],
    pixel: tuple[Any, Any, Any],
    segment: tuple[int, int, int, int],
    which: tuple[Any, int],
    ahead: tuple[Any, int] | None,
    target: Target,
) -> None:
    """One tile of pixels times one group of filters: accumulators from the bias, all kept positions, epilogue, store.

    ``which``: the group's number in its segment, and the number of the segment's first group. ``ahead``: which of how many tiles of the group this is, where each asks for its share of the next group's weights.
    """
    from stages.compiler.kernels import epilogue, tir

    T = tir.T
    start, _, lanes, vectors = segment
    g, first = which
    places = [(r, c) for r in range(block[0]) for c in range(block[1])]
    group = lanes * vectors
    channel = T.Bind(g * group + start)
    sums = chains(len(places), lanes, vectors, target)
    acc = T.alloc_buffer((sums * len(places) * group,), "float32", scope="local")

    def slot(p: int, v: int, chain: int = 0) -> Any:
        return tir.at(((chain * len(places) + p) * vectors + v) * lanes, lanes)

    for v in range(vectors):
        bias = T.Bind(o.b[tir.at(channel + v * lanes, lanes)])
        for p in range(len(places)):
            for chain in range(sums):
                T.buffer_store(acc, tir.splat(0, lanes) if chain else bias, [slot(p, v, chain)])
    n, y, x = pixel
    corner = T.Bind(n * spec.x[0] + y * spec.x[1] + x * spec.x[2])
    k0 = T.Bind(o.ptr[(g + first) * 3])
    w0 = T.Bind(o.ptr[(g + first) * 3 + 2])
    count = T.Bind(o.ptr[(g + first) * 3 + 1])
    if spec.claiming:
        _claim(o, spec, (n, y, x + block[1]), block, g, channel, group)
    following, pace = None, 0
    if ahead and spec.at_once:
        tir.fetch_share(o.w, w0 + count * group, count * group, *ahead)
    elif ahead:
        pace = -(-group // ahead[1])
        following = T.Bind(w0 + count * group + ahead[0] * count * pace)

    def position(k: Any, chain: int) -> None:
        source = T.Bind(o.idx[k0 + k] + corner)
        if following is not None:
            tir.fetch_evenly(o.w, following, k, pace)
        elif spec.streamed == "near":
            tir.fetch_ahead(o.w, w0 + k * group, group)
        weights = [T.Bind(o.w[tir.at(w0 + k * group + v * lanes, lanes)]) for v in range(vectors)]
        for p, (r, c) in enumerate(places):
            value = o.x[source + (r * spec.x[1] + c * spec.x[2])]
            value = T.Bind(T.broadcast(value, lanes) if lanes > 1 else value)
            for v in range(vectors):
                T.buffer_store(acc, tir.multiply_add(acc[slot(p, v, chain)], value, weights[v], lanes, target, min(vectors, len(places))), [slot(p, v, chain)])

    if sums > 1:
        with T.serial(0, count // sums) as turn:
            for chain in range(sums):
                position(turn * sums + chain, chain)
    with T.serial(0, count % sums if sums > 1 else count) as k:
        position(count // sums * sums + k if sums > 1 else k, 0)
    for chain in range(1, sums):
        for p in range(len(places)):
            for v in range(vectors):
                T.buffer_store(acc, acc[slot(p, v)] + acc[slot(p, v, chain)], [slot(p, v)])
    late = costly(spec.epilogue)
    for p, (r, c) in enumerate(places):
        for v in range(vectors):
            place = epilogue.Place((n, y + r, x + c), channel + v * lanes, lanes)
            epilogue.finish(o, acc[slot(p, v)], () if late else spec.epilogue, place, spec.y, spec.extras)
    if late:  # the results are still in the first-level cache
        with T.serial(0, block[0]) as r, T.serial(0, block[1]) as c:
            for v in range(vectors):
                place = epilogue.Place((n, y + r, x + c), channel + v * lanes, lanes)
                epilogue.finish(o, o.y[place.index(spec.y)], spec.epilogue, place, spec.y, spec.extras)
