"""Linear layers of one image: nothing is reused but the input, so the weights' way from memory is all that counts.

What is kept or removed is a *unit*: a column of ``group`` consecutive filters (vectors along the filters, one input float for all), or ``lanes`` consecutive columns of one filter (vectors along the
inputs, summed up at the end). They are what block-based pruning (NPAS, section 4.1) removes: columns and rows of each block on its own. Each list of units (a group of filters, or one filter) has its
own positions; several lists go side by side, step by step: one long stream of weights and one of 16-bit indices, which the processor fetches ahead, and sums enough to hide the latency of a
multiply-add. Measured, one Zen 4 core, 25088 -> 4096 at 8.2x, against the gather kernel: blocks of 4 rows 5.5 -> 2.4 ms, 8 rows 3.0 -> 1.7 ms, 32 rows 1.6 -> 1.25 ms. All linear layers of vgg16, weights
from main memory: dense 34 GB/s, blocks of 32, 16, 8 and 4 rows 35, 33, 28 and 21 GB/s; below 16 rows the loads of single inputs are the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, View
from stages.compiler.kernels.gather import offsets, walk
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import LINE, positions, visits
from stages.compiler.kernels.units import IDLE, split
from stages.compiler.target import Target
from stages.compiler.tiles import shape_of_group
from stages.schemes.scheme import LayerScheme

MIXED = 1.05  # of what the mask keeps, what four filters at a time keep at most where filters are alike: then no unit along the inputs can be better
SUMS = (16, 8, 4)  # accumulators of a tile, at most half of the registers: fewer make more tiles, which threads share more evenly
FEWEST = 32  # filters; fewer make too few sums: the gather kernel splits each into several
NARROW = 1 << 16  # positions from which an index takes 32 bits
BANDWIDTH = 10.0  # bytes per cycle from main memory
_STEP = 0.5  # cycles per unit besides loads of floats: index
_LATENCY = 4.0  # cycles from a multiply-add to the next on the same sum


@dataclass(frozen=True)
class Segment:
    """``tiles`` tiles of ``lists`` lists of ``filters`` filters each, from filter ``start`` and tile ``first`` on. A unit has ``lanes * vectors`` weights: those of ``filters`` filters, or of one filter."""

    start: int
    first: int
    tiles: int
    lists: int
    filters: int
    lanes: int
    vectors: int

    @property
    def unit(self) -> int:
        """Weights of a unit."""
        return self.lanes * self.vectors

    @property
    def wide(self) -> int:
        """Filters of a tile."""
        return self.lists * self.filters

    @property
    def by_rows(self) -> bool:
        """Whether a unit lies along the inputs of one filter."""
        return self.filters < self.unit


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x``: first float of the input; ``short``: two indices an int32."""

    x: int
    y: View
    out: Layout
    extras: tuple[View, ...]
    segments: tuple[Segment, ...]
    short: bool
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "conv" step with one output pixel in all; None for any other, and for one of very few filters."""
    step = placed.step
    if not takes(placed):
        return None
    assert step.weight is not None and step.bias is not None
    _, x, y, extras = walk(placed)
    matrix, order = positions(step.weight), visits(*step.weight.shape[1:])
    place = offsets(placed)[order]
    base = int(place.min())
    short = int(place.max()) - base < NARROW
    segments = _choose(matrix != 0, place, order, short, target)
    data, kept = pack(matrix, step.bias, segments, place - base, order, short)
    spec = Spec(x[0] + base, y, placed.output, extras, segments, short, step.epilogue)
    return Kernel("matvec", spec, step, data, _tile_label(segments[0]), kept, _reason(scheme, segments, matrix.size, kept), sum(s.tiles for s in segments))


def takes(placed: Placed) -> bool:
    """Whether this rule is for ``placed``."""
    step, (n, _, h, w) = placed.step, placed.output.shape
    return step.op == "conv" and step.weight is not None and step.weight.shape[0] >= FEWEST and n * h * w == 1


def _tile_label(s: Segment) -> str:
    return f"{s.lists} filters x {s.lanes} inputs" if s.by_rows else f"{s.lists} groups x {s.vectors}x{s.lanes} channels"


def _reason(scheme: LayerScheme, segments: tuple[Segment, ...], dense: int, kept: int) -> str:
    sizes = "+".join(f"{s.tiles * s.lists}x{s.filters}" for s in segments)
    units = f"rows of {segments[0].lanes} columns of filters" if segments[0].by_rows else "groups of filters"
    return f"{scheme.label}: {units} {sizes}, {kept} of {dense} weights"


def _choose(mask: np.ndarray, place: np.ndarray, order: np.ndarray, short: bool, target: Target) -> tuple[Segment, ...]:
    """The cheapest division of ``mask`` (filters, positions) into lists of units; ``place`` is in ``order``."""
    quantum = target.narrow[-1]
    padded = mask
    if len(mask) % quantum:
        padded = np.zeros((-(-len(mask) // quantum) * quantum, mask.shape[1]), bool)
        padded[: len(mask)] = mask
    quads = np.asarray(padded.reshape(-1, quantum, mask.shape[1]).any(1))
    found: list[tuple[float, tuple[Segment, ...]]] = []
    sizes = sorted({lanes * vectors for lanes in target.narrow for vectors in (1, 2, 4)})
    for size, most in product(sizes, {min(sums, target.registers // 2) for sums in SUMS}):
        if size <= len(padded):
            segments = tuple(_by_columns(len(padded), size, most, target))
            steps = [_steps(quads[s.start // quantum :], s, s.filters // quantum) for s in segments]
            found.append((_cost(segments, steps, short, target), segments))
    alike = np.count_nonzero(quads) * quantum <= MIXED * np.count_nonzero(mask)
    for lanes in target.narrow if not alike else ():
        if place.size % lanes == 0 and (place.reshape(-1, lanes) - place[::lanes, None] == np.arange(lanes)).all():
            segments = tuple(_by_rows(len(padded), lanes, quantum))
            blocks = np.asarray(padded[:, order].reshape(len(padded), -1, lanes).any(2))
            found.append((_cost(segments, [_steps(blocks[s.start :], s, 1) for s in segments], short, target), segments))
    return min(found, key=lambda f: f[0])[1]


def _by_columns(filters: int, size: int, most: int, target: Target) -> Iterator[Segment]:
    """Groups of ``size`` filters, as many side by side as the registers allow; what remains is a group of its own."""
    lanes, vectors = shape_of_group(size, target)
    tiles = 0
    for lists, group, count in split(filters // size, max(1, most // vectors)):
        yield Segment(group * size, tiles, count, lists, size, lanes, vectors)
        tiles += count
    start = filters // size * size
    if start < filters:
        yield Segment(start, tiles, 1, 1, filters - start, *shape_of_group(filters - start, target))


def _by_rows(filters: int, lanes: int, quantum: int) -> Iterator[Segment]:
    """Single filters, 8 side by side; what remains are the last 4."""
    whole = filters // 8 * 8
    if whole:
        yield Segment(0, 0, whole // 8, 8, 1, lanes, 1)
    if whole < filters:
        yield Segment(whole, whole // 8, (filters - whole) // quantum, quantum, 1, lanes, 1)


def _steps(kept: np.ndarray, s: Segment, rows: int) -> int:
    """Steps of all tiles of a segment; ``kept`` (rows, units), ``rows`` of them a list."""
    lists = kept[: s.tiles * s.lists * rows].reshape(s.tiles, s.lists, rows, -1).any(2)
    return int(lists.sum(2).max(1).sum())


def _cost(segments: tuple[Segment, ...], steps: list[int], short: bool, target: Target) -> float:
    """Cycles: loads, bytes by bandwidth, or the latency of sums, whichever is most; and what threads wait for each other."""
    total = 0.0
    for s, count in zip(segments, steps, strict=True):
        halves = 2 if s.lanes == target.lanes and target.fused_narrow else 1
        loads = s.vectors * halves + (halves if s.by_rows else 1)
        total += count * s.lists * max(_STEP + 0.5 * loads, (4 * s.unit + (2 if short else 4)) / BANDWIDTH, _LATENCY / s.lists)
    return total * (1 + IDLE / sum(s.tiles for s in segments))


def pack(
    matrix: np.ndarray, bias: np.ndarray, segments: tuple[Segment, ...], place: np.ndarray, order: np.ndarray, short: bool
) -> tuple[dict[str, np.ndarray], int]:
    """(arrays w, b, ptr, idx, number of weights kept in real filters). Positions are visited in ``order``, so they lie at ``place``.

    ``ptr`` holds for each tile (first int32 of idx, number of steps, first float of w); each step has an index and a unit of weights for every list. A list with fewer units than others of its
    tile is filled up with zero weights.
    """
    filters, last = len(matrix), segments[-1]
    shift = np.zeros(last.start + last.tiles * last.wide, np.float32)
    shift[:filters] = bias
    ptr: list[tuple[int, int, int]] = []
    idx: list[np.ndarray] = []
    packed: list[np.ndarray] = []
    kept = words = floats = 0
    for s in segments:
        where = place[:: s.lanes] if s.by_rows else place
        for tile in range(s.tiles):
            values = _units(matrix, order, s, tile)
            keep = (values != 0).any(2)
            steps = int(keep.sum(1).max())
            first = np.argsort(~keep, axis=1, kind="stable")[:, :steps]  # of each list the kept units first, in order
            alive = np.take_along_axis(keep, first, 1)
            ptr.append((words, steps, floats))
            idx.append(_indices(np.where(alive, where[first], 0).T, short))
            packed.append(np.take_along_axis(values, first[:, :, None], 1).transpose(1, 0, 2).ravel())
            real = np.clip(filters - (s.start + tile * s.wide + np.arange(s.lists) * s.filters), 0, s.filters)
            kept += int((keep.sum(1) * real).sum()) * (s.unit // s.filters)
            words += idx[-1].size
            floats += packed[-1].size
    arrays = {"w": np.concatenate(packed), "b": shift, "ptr": np.asarray(ptr, np.int32).ravel(), "idx": np.concatenate(idx)}
    return arrays, kept


def _units(matrix: np.ndarray, order: np.ndarray, s: Segment, tile: int) -> np.ndarray:
    """The weights of one tile as (lists, units, weights of a unit)."""
    rows = np.zeros((s.wide, matrix.shape[1]), np.float32)
    part = matrix[s.start + tile * s.wide : s.start + (tile + 1) * s.wide]
    rows[: len(part)] = part[:, order]
    return rows.reshape(s.lists, -1, s.lanes) if s.by_rows else rows.reshape(s.lists, s.filters, -1).transpose(0, 2, 1)


def _indices(where: np.ndarray, short: bool) -> np.ndarray:
    """(steps, lists) as int32, two a number if ``short``, the first in the low half."""
    if not short:
        return where.astype(np.int32).ravel()
    even = np.zeros((len(where), -(-where.shape[1] // 2) * 2), "<u2")
    even[:, : where.shape[1]] = where
    return even.reshape(-1).view("<i4")


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)
        for segment in spec.segments:
            with tir.T.serial(*tir.overlap(o, segment.first, segment.tiles)) as tile:
                _tile(o, spec, segment, tile, target)

    return tir.function(name, body)


def _tile(o: Any, spec: Spec, s: Segment, tile: Any, target: Target) -> None:
    """The lists of one tile: all steps, then bias, epilogue, store."""
    from stages.compiler.kernels import epilogue, tir

    T = tir.T
    acc = T.alloc_buffer((s.lists * s.unit,), "float32", scope="local")
    first = [T.Bind(o.ptr[(tile + s.first) * 3 + k]) for k in range(3)]
    words = -(-s.lists // 2) if spec.short else s.lists
    slots = [[tir.at(number * s.unit + v * s.lanes, s.lanes) for v in range(s.vectors)] for number in range(s.lists)]
    for slot in (slot for row in slots for slot in row):
        T.buffer_store(acc, tir.splat(0, s.lanes), [slot])

    streams, done = target.reach.streams, 0
    early = target.reach.early and s.unit < LINE

    def step(k: Any) -> None:
        if early:
            tir.fetch_ahead(o.w, first[2] + k * (s.lists * s.unit), s.lists * s.unit)
        for number, row in enumerate(slots):
            where = o.idx[first[0] + k * words + (number // 2 if spec.short else number)]
            if spec.short:
                where = (where >> 16 if number % 2 else where) & 0xFFFF
            where = T.Bind(where) + spec.x
            value = o.x[tir.at(where, s.lanes)] if s.by_rows else tir.spread(T.Bind(o.x[where]), s.lanes)
            for v, slot in enumerate(row):
                weights = o.w[tir.at(first[2] + k * (s.lists * s.unit) + (number * s.unit + v * s.lanes), s.lanes)]
                T.buffer_store(acc, acc[slot] + value * weights, [slot])

    if streams > 1:
        share = T.Bind(tir.tirx.truncdiv(first[1], streams))
        with T.serial(0, share) as k:
            for number in range(streams):
                step(T.Bind(share * number + k))
        done = share * streams
    with T.serial(done, first[1]) as k:
        step(k)
    sums = _summed(acc, s) if s.by_rows else acc
    channel = T.Bind(tile * s.wide + s.start)
    for start, lanes in tir.widths(s.wide, target.narrow):
        place = epilogue.Place((0, 0, 0), channel + start, lanes)
        epilogue.finish(o, T.Bind(sums[tir.at(start, lanes)] + o.b[tir.at(channel + start, lanes)]), spec.epilogue, place, spec.y, spec.extras)


def _summed(acc: Any, s: Segment) -> Any:
    """One float for each list: the sum of its lanes."""
    from stages.compiler.kernels import tir

    T = tir.T
    sums = T.alloc_buffer((s.lists,), "float32", scope="local")
    for number in range(s.lists):
        lanes = s.lanes
        while lanes > 1:
            lanes //= 2
            low, high = (tir.at(number * s.unit + start, lanes) for start in (0, lanes))
            T.buffer_store(acc, acc[low] + acc[high], [low])
        T.buffer_store(sums, acc[number * s.unit], [number])
    return sums
