"""Convolutions from planes to planes of the same resolution: vectors along pixels, a group of filters that share their kept positions, sparsity as data.

The same idea as gather.py with the roles exchanged: each kept position is a few vectors of pixels times one weight per filter. Positions lie at a constant distance because all planes of a
resolution have the same geometry (planar.py), so 3x3 and 5x5 windows are flat walks too. So are windows with stride 2 over planes of every second pixel (``attrs["folded"]``, space_to_depth.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, Shape, Step, costly, round_up
from stages.compiler.kernels import planar, space_to_depth
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import Stream, pack, stream
from stages.compiler.kernels.planar_conv_cost import bands, choose, filter_groups, options, pixels_outer, shifted
from stages.compiler.kernels.units import shares, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``segments`` are (first filter, groups, filters per group); a tile is up to ``vectors`` vectors of pixels.

    ``bands``: into how many bands of consecutive pixels an image is divided, in each of which all filters are computed before the next; with 1, threads divide filters or tiles.
    """

    x: int  # floats from image to image
    out: Layout
    extras: tuple[planar.Operand, ...]
    segments: tuple[tuple[int, int, int], ...]
    vectors: int
    pixels_outer: bool
    mask: int  # float of operand b where the mask of the image begins, 0: none
    epilogue: Epilogue
    streamed: Stream
    gate: planar.Operand | None = None
    bands: int = 1


@dataclass(frozen=True)
class Choice:
    """What is tuned: ``filters`` of a group, ``vectors`` of pixels of a tile, and whether the loop over pixels or that over groups is the outer one."""

    filters: int
    vectors: int
    pixels_outer: bool

    @property
    def handicap(self) -> float:
        """By how much it must win: nothing, all choices compute the same sums."""
        return 1.0


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "conv" step from planes to planes with the tile that a small model expects to be the fastest, None for any other."""
    if not _takes(placed, target):
        return None
    assert placed.step.weight is not None
    flat, out = placed.step.weight.reshape(len(placed.step.weight), -1), placed.output  # planes come one after another, so positions do too
    _, groups, vectors = choose(placed.step, out, target)
    order = not placed.step.attrs.get("split") and pixels_outer(planar.vectors(out, target.lanes), vectors, flat, placed.inputs[0], groups, target)
    return chosen(placed, scheme, target, Choice(groups[0].lanes, vectors, order))


def choices(placed: Placed, target: Target) -> list[tuple[float, Choice]]:
    """(cycles by the model, Choice) of all that a "conv" step from planes to planes may choose from; none for any other. The model doesn't tell the loop orders apart."""
    if not _takes(placed, target):
        return []
    assert placed.step.weight is not None
    flat = placed.step.weight.reshape(len(placed.step.weight), -1)
    return [(cost, Choice(groups[0].lanes, vectors, outer)) for cost, groups, vectors in options(flat, placed.output, shifted(placed.step), target) for outer in (True, False)]


def chosen(placed: Placed, scheme: LayerScheme, target: Target, choice: Choice) -> Kernel:
    """The kernel of a "conv" step from planes to planes with one of ``choices``."""
    step, source, out = placed.step, placed.inputs[0], placed.output
    assert step.weight is not None and step.bias is not None
    flat = step.weight.reshape(len(step.weight), -1)
    groups = filter_groups(len(flat), choice.filters)
    data, kept = pack(flat, step.bias, groups, offsets(placed))
    ahead = stream(data, choice.filters, not choice.pixels_outer, target)
    mask = 0
    if out.border[0]:  # the walk crosses frames
        shift = np.zeros(round_up(len(data["b"]), planar.ALIGNED), np.float32)
        shift[: len(data["b"])] = data["b"]
        mask, data["b"] = len(shift), np.concatenate([shift, planar.inside(out, target.lanes)])
    segments = tuple((g.start, g.count, g.lanes * g.vectors) for g in groups)
    further = planar.operands(placed)
    gate = further[-1] if step.attrs.get("gate") else None
    if gate:
        further = further[:-1]
        data["ptr"] = np.concatenate([data["ptr"], _channels(data["idx"], source)])
    data["idx"] = asking(data["idx"], target)
    divided = bands(data["w"].nbytes, placed, choice.pixels_outer, target)
    spec = Spec(source.image, out, further, segments, choice.vectors, choice.pixels_outer, mask, step.epilogue, ahead, gate, divided)
    macs = kept * out.shape[0] * out.shape[2] * out.shape[3]
    sizes = "+".join(f"{c}x{f}" for _, c, f in segments)
    reason = f"{scheme.label}: planes, groups of filters {sizes}, {kept} of {flat.size} weights"
    label = f"{choice.vectors}x{target.lanes} pixels x {segments[0][2]} channels"
    return Kernel("planar_conv", spec, step, data, label, macs, reason, units(_dims(spec, target)), scratch=data["w"].nbytes if gate else 0, choice=choice)


def fits(step: Step, source: Shape, out: Shape, target: Target) -> bool:
    """Whether a flat walk does a "conv" step from images of shape ``source``: it keeps the resolution, or halves it (by a stride of 2 that becomes channels)."""
    assert step.weight is not None
    if out[3] < target.narrow[-1]:
        return False
    if step.attrs["stride"] == (2, 2):
        return out[2:] == space_to_depth.shape(source)[2:]
    (top, left), dilation, kernel = step.attrs["padding"], step.attrs["dilation"], step.weight.shape[2:]
    centred = top == left and all(2 * top == d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return step.attrs["stride"] == (1, 1) and centred and out[2:] == source[2:]


def _takes(placed: Placed, target: Target) -> bool:
    step = placed.step
    if step.op != "conv" or not planar.suits(placed):
        return False
    return bool(step.attrs.get("folded")) or fits(step, placed.inputs[0].shape, placed.output.shape, target)


def offsets(placed: Placed) -> np.ndarray:
    """Float offset of each position (channel, row, column) from the place of the output pixel."""
    step, source = placed.step, placed.inputs[0]
    assert step.weight is not None
    _, channels, kh, kw = step.weight.shape
    channel = np.arange(channels)[:, None, None]
    rows = (np.arange(kh) * step.attrs["dilation"][0] - step.attrs["padding"][0])[:, None]
    cols = np.arange(kw) * step.attrs["dilation"][1] - step.attrs["padding"][1]
    if step.attrs.get("folded"):
        channel, rows, cols = 4 * channel + 2 * (rows % 2) + cols % 2, rows // 2, cols // 2
    grid = source.origin + channel * source.channel + rows * source.cols + cols
    return grid.ravel().astype(np.int32)


def asking(idx: np.ndarray, target: Target) -> np.ndarray:
    """``idx`` with as many further entries as its last ones ask ahead."""
    return np.concatenate([idx, np.zeros(target.reach.ahead, np.int32)])


def _channels(idx: np.ndarray, source: Layout) -> np.ndarray:
    """The input channel of each entry of ``idx`` of a 1x1 convolution."""
    return ((idx - source.origin) // source.channel).astype(np.int32)


def _tiles(spec: Spec, target: Target) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(vectors of a tile, its first vector in each band, tiles of each band) of each size of tile."""
    return shares(planar.vectors(spec.out, target.lanes), spec.bands, spec.vectors)


def _dims(spec: Spec, target: Target) -> list[tuple[int, ...]]:
    """The loops that are divided into units: of bands; or of tiles and groups, tiles of each size for themselves; or of each segment's groups and all tiles."""
    n, tiles = spec.out.shape[0], _tiles(spec, target)
    if spec.bands > 1:
        return [(n, spec.bands)]
    if spec.pixels_outer:
        return [(n, count, groups) for _, _, (count,) in tiles for _, groups, _ in spec.segments]
    return [(n, groups, sum(count for _, _, (count,) in tiles)) for _, groups, _ in spec.segments]


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import gated, tir

    T, dims = tir.T, _dims(spec, target)
    tiles, segments = _tiles(spec, target), range(len(spec.segments))
    every = min(sum(counts) for counts in zip(*(counts for _, _, counts in tiles), strict=True))  # tiles of a group, in the band that has fewest

    def body(o: Any) -> None:
        if spec.gate:
            origin, groups = spec.gate.origin, sum(count for _, count, _ in spec.segments)
            sizes = [(count, filters) for _, count, filters in spec.segments]
            gated.scale_weights(o, (o.e0, o.e1, o.e2)[len(spec.extras)], sizes, lambda k: o.ptr[k + 3 * groups] + origin, (8, 4))

        def visit(segment: int, size: int, n: Any, g: Any, vector: Any, ordinal: Any) -> None:
            _visit(o, spec, (size, segment), (n, g, vector), (ordinal, max(1, every)) if spec.streamed == "group" else None, target)

        def band(n: Any, b: Any) -> None:
            """All tiles of one band, for all groups."""
            places = [(size, tir.pick(b, firsts), tir.pick(b, counts)) for size, firsts, counts in tiles]
            if spec.pixels_outer:
                for size, first, count in places:
                    with T.serial(0, count) as tile:
                        for segment in segments:
                            with T.serial(0, spec.segments[segment][1]) as g:
                                visit(segment, size, n, g, first + tile * size, 0)
                return
            for segment in segments:
                with T.serial(0, spec.segments[segment][1]) as g:
                    before: Any = 0
                    for size, first, count in places:
                        with T.serial(0, count) as tile:
                            visit(segment, size, n, g, first + tile * size, before + tile)
                        before = before + count

        def group(segment: int) -> Callable[..., None]:
            def walk(n: Any, g: Any, tile: Any) -> None:
                """One tile of any size: the sizes follow one another, so that a group's weights are read while they are near."""
                (size, _, (longer,)), *shorter = tiles
                if not shorter:
                    visit(segment, size, n, g, tile * size, tile)
                    return
                with T.If(tile < longer):
                    with T.Then():
                        visit(segment, size, n, g, tile * size, tile)
                    with T.Else():
                        visit(segment, shorter[0][0], n, g, tile * shorter[0][0] + longer * (size - shorter[0][0]), tile)

            return walk

        def tile_of(segment: int, size: int, first: int) -> Callable[..., None]:
            return lambda n, tile, g: visit(segment, size, n, g, first + tile * size, 0)

        if spec.bands > 1:
            tir.nest(o, units(dims), dims[0], band)
        elif spec.pixels_outer:
            for size, (first,), (count,) in tiles:
                for segment in segments:
                    tir.nest(o, units(dims), (spec.out.shape[0], count, spec.segments[segment][1]), tile_of(segment, size, first))
        else:
            for segment in segments:
                tir.nest(o, units(dims), dims[segment], group(segment))

    return tir.function(name, body, multiplies=target)


def _visit(o: Any, spec: Spec, what: tuple[int, int], where: tuple[Any, Any, Any], ahead: tuple[Any, int] | None, target: Target) -> None:
    """``what``: (vectors of a tile, segment); ``where``: (image, group of the segment, first vector). ``ahead`` as of ``_micro``."""
    from stages.compiler.kernels import tir

    T, (size, segment), (n, g, vector) = tir.T, what, where
    start, _, filters = spec.segments[segment]
    before = sum(count for _, count, _ in spec.segments[:segment])
    written = planar.vectors(spec.out, target.lanes) * target.lanes
    channel = T.Bind(g * filters + start)
    pixel = T.Bind(vector * target.lanes)

    def plane(f: Any) -> Any:
        return T.Bind(n * spec.out.image + (channel + f) * spec.out.channel)

    with T.If(pixel == 0), T.Then(), T.serial(0, filters) as f:
        planar.zero_before(o, plane(f), spec.out, target.narrow)
    with T.If(pixel == written - size * target.lanes), T.Then(), T.serial(0, filters) as f:  # the thread that writes the pixels before
        planar.zero_behind(o, plane(f), spec.out, written, target.narrow)
    _micro(o, spec, (size, filters), n, channel, g + before, pixel, ahead, target)


def _micro(o: Any, spec: Spec, shape: tuple[int, int], n: Any, channel: Any, group: Any, pixel: Any, ahead: tuple[Any, int] | None, target: Target) -> None:
    """One tile of pixels times one group of filters. ``ahead``: which of how many tiles this is, where each asks for its share of the next group's weights."""
    from stages.compiler.kernels import tir

    T, lanes, (vectors, filters) = tir.T, target.lanes, shape
    acc = T.alloc_buffer((vectors * filters * lanes,), "float32", scope="local")

    def slot(f: int, v: int) -> Any:
        return tir.at((f * vectors + v) * lanes, lanes)

    for f in range(filters):
        bias = T.Bind(T.broadcast(o.b[channel + f], lanes))
        for v in range(vectors):
            T.buffer_store(acc, bias, [slot(f, v)])
    corner = T.Bind(n * spec.x + pixel)
    k0, count, w0 = (T.Bind(o.ptr[group * 3 + i]) for i in range(3))
    pace = -(-filters // ahead[1]) if ahead else 0
    following = T.Bind(w0 + count * filters + ahead[0] * count * pace) if ahead else None
    with T.serial(0, count) as k:
        source = T.Bind(o.idx[k0 + k] + corner)
        if following is not None:
            tir.fetch_evenly(o.w, following, k, pace)
        elif spec.streamed:
            tir.fetch_ahead(o.w, w0 + k * filters, filters)
        if target.reach.ahead:
            tir.fetch_lines(o.x, o.idx[k0 + k + target.reach.ahead] + corner, vectors * lanes)
        pixels = [T.Bind(o.x[tir.at(source + v * lanes, lanes)]) for v in range(vectors)]
        for f in range(filters):
            weight = T.Bind(T.broadcast(o.w[w0 + k * filters + f], lanes))
            for v in range(vectors):
                T.buffer_store(acc, tir.multiply_add(acc[slot(f, v)], pixels[v], weight, lanes, target, min(vectors, filters)), [slot(f, v)])
    masks = [T.Bind(o.b[tir.at(pixel + (spec.mask + v * lanes), lanes)]) > tir.splat(0, lanes) if spec.mask else None for v in range(vectors)]
    late = costly(spec.epilogue)
    for f in range(filters):
        for v in range(vectors):
            planar.finish(
                o, acc[slot(f, v)], () if late else spec.epilogue, spec.extras, n, channel + f, pixel + v * lanes, lanes, spec.out, None if late else masks[v]
            )
    if late:
        with T.serial(0, filters) as f:
            for v in range(vectors):
                here = spec.out.origin + n * spec.out.image + (channel + f) * spec.out.channel + pixel + v * lanes
                planar.finish(o, o.y[tir.at(here, lanes)], spec.epilogue, spec.extras, n, channel + f, pixel + v * lanes, lanes, spec.out, masks[v])
