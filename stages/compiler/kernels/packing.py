"""Masked weights as data of the gather kernel: which filters form a group, the union of their positions, packed weights. Imports numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from stages.compiler.ir import round_up
from stages.compiler.target import Target
from stages.compiler.tiles import Tile, Window, best_tile, shape_of_group, tile_cost, tiles


@dataclass(frozen=True)
class Group:
    """``count`` consecutive groups of ``lanes * vectors`` filters each, from filter ``start`` on."""

    start: int
    count: int
    lanes: int
    vectors: int


LINE = 16  # floats of a cache line
L1_BYTES = 32 * 1024
FAR_BYTES = 256 * 1024  # weights beyond that share a second-level cache with activations and other layers' weights: they come from further away
_MOST_VECTORS = 5  # of a group: more leave room for too few pixels


@cache
def visits(channels: int, kh: int, kw: int) -> np.ndarray:
    """The order in which a kernel visits the positions (channel, row, column) of its window, as indices into that flattened order: a cache line of channels at a time.

    So the window's lines of these channels stay in the first-level cache for all kh * kw visits. Measured, 512 -> 512 channels 3x3 at 28x28, 8.2x pruned: 53 -> 80 GFLOP/s.
    """
    channel, row, col = np.indices((channels, kh, kw)).reshape(3, -1)
    return np.lexsort((channel % LINE, col, row, channel // LINE))


def positions(weight: np.ndarray) -> np.ndarray:
    """Convolution weight (o, i, kh, kw) as (o, i * kh * kw)."""
    return weight.reshape(len(weight), -1)


def choose_groups(weight: np.ndarray, dims: tuple[int, int, int], target: Target, window: Window) -> tuple[tuple[Group, ...], Tile]:
    """The cheapest grouping of the filters of ``weight`` (o, positions) by the model of tiles.py, and the tile for it.

    A mask that is shared by 8 filters may be run in groups of 8, or of 16 with the union of two lists; which is faster depends on the mask and the target.
    """
    return _choose(weight, dims, target, window)[1:]


def estimate(weight: np.ndarray, dims: tuple[int, int, int], target: Target, window: Window | None = None) -> float:
    """Processor cycles of the gather kernel by the model of tiles.py; arguments as of ``choose_groups``. Without ``window`` inputs are taken to be in the first-level cache."""
    return _choose(weight, dims, target, window or Window())[0]


def _choose(weight: np.ndarray, dims: tuple[int, int, int], target: Target, window: Window) -> tuple[float, tuple[Group, ...], Tile]:
    quantum = target.narrow[-1]
    kept = _kept(weight != 0, quantum)
    best: tuple[float, tuple[Group, ...], Tile] | None = None
    for filters in _sizes(len(kept) * quantum, target):
        groups = segments(len(kept) * quantum, *shape_of_group(filters, target), target)
        cost, tile = _cost(kept, groups, dims, quantum, target, window)
        if best is None or cost < best[0]:
            best = (cost, groups, tile)
    assert best is not None
    return best


def candidates(weight: np.ndarray, dims: tuple[int, int, int], target: Target, window: Window) -> list[tuple[float, Tile]]:
    """(cycles by the model, Tile) of every grouping and tile, arguments as of ``choose_groups``. ``segments`` makes the groups of a Tile's lanes and vectors."""
    quantum = target.narrow[-1]
    kept = _kept(weight != 0, quantum)
    filters = len(kept) * quantum
    found = []
    for lanes in target.narrow:
        for vectors in range(1, min(_MOST_VECTORS, filters // lanes) + 1):
            groups = segments(filters, lanes, vectors, target)
            mean, *rest = [_mean_positions(kept, group, quantum) for group in groups]
            others = sum(best_tile(dims[1], dims[2], g.lanes, g.vectors, m, target, window)[0] for m, g in zip(rest, groups[1:], strict=True))
            for tile in tiles(dims[1], dims[2], lanes, vectors, target):
                cost = groups[0].count * tile_cost(tile, dims[1], dims[2], mean, target, window)
                found.append((dims[0] * (cost + others), tile))
    return found


Stream = Literal["", "near", "group"]
"""Which packed weights a kernel asks for before their use: none; those a page ahead in the order of reading; or, while the tiles of one group are computed, those of the next group."""


def stream(data: Mapping[str, np.ndarray], filters: int, by_groups: bool, target: Target) -> Stream:
    """What asking ahead is worth for the packed ``data`` of groups of ``filters``; ``by_groups``: all tiles of pixels of a group come before the next group.

    "group" where the weights come from beyond the second-level cache and two groups have room in it: they arrive while the processor multiplies, instead of all with a group's first tile. Measured, one
    Granite Rapids core, dense 1x1 layers of MobileNetV2 at 7x7: 46 -> 70 to 80 % of the peak. "near" where weights don't stay in the first level and a position takes a cache line of them at most. Measured,
    one Zen 4 core: pruned 1x1 layers of MobileNetV2 at 7x7 68 -> 83 %, 3x3 layers of ResNet-18 at 7x7 70 -> 81 %; dense layers, in groups of 48 filters and more, lose 2 %. Where instructions are what
    bounds a kernel (Target.issue), nothing is asked for; nor are "near" ones where two loads a cycle do (Reach.ahead). Measured, Zen 3, blocks of 8: 112 to 672 channels at 14x14 60 -> 76 % of the peak.
    """
    if target.issue:
        return ""
    size = data["w"].nbytes
    if by_groups and size > FAR_BYTES and size / (len(data["ptr"]) // 3) <= target.reach.group:
        return "group"
    return "near" if size > L1_BYTES and filters <= LINE and not target.reach.ahead else ""


def _kept(mask: np.ndarray, quantum: int) -> np.ndarray:
    """(o, positions) -> (o / quantum, positions): whether any of ``quantum`` consecutive filters keeps the position."""
    padded = np.zeros((-(-len(mask) // quantum) * quantum, mask.shape[1]), bool)
    padded[: len(mask)] = mask
    return np.asarray(padded.reshape(-1, quantum, mask.shape[1]).any(1))


def _sizes(filters: int, target: Target) -> list[int]:
    """Group sizes worth a try: multiples of the vector widths that leave room for two pixels or more."""
    sizes = {lanes * vectors for lanes in target.narrow for vectors in range(1, _MOST_VECTORS + 1)}
    return sorted((s for s in sizes if s <= filters), reverse=True)


def segments(filters: int, lanes: int, vectors: int, target: Target) -> tuple[Group, ...]:
    """``filters`` in groups of ``vectors`` vectors of ``lanes``, the rest, rounded up to the narrowest vector, in one group of its own."""
    whole, rest = divmod(round_up(filters, target.narrow[-1]), lanes * vectors)
    found = [Group(0, whole, lanes, vectors)] if whole else []
    if rest:
        found.append(Group(whole * lanes * vectors, 1, *shape_of_group(rest, target)))
    return tuple(found)


def _cost(kept: np.ndarray, groups: tuple[Group, ...], dims: tuple[int, int, int], quantum: int, target: Target, window: Window) -> tuple[float, Tile]:
    total, tiles = 0.0, []
    for group in groups:
        cost, tile = best_tile(dims[1], dims[2], group.lanes, group.vectors, _mean_positions(kept, group, quantum), target, window)
        total += dims[0] * group.count * cost
        tiles.append(tile)
    return total, tiles[0]


def _mean_positions(kept: np.ndarray, group: Group, quantum: int) -> int:
    """Positions that a group keeps on average."""
    size, first = group.lanes * group.vectors // quantum, group.start // quantum
    part = kept[first : first + group.count * size].reshape(group.count, size, -1).any(1)
    return max(1, round(int(part.sum()) / group.count))


def pack(
    weight: np.ndarray, bias: np.ndarray, groups: tuple[Group, ...], offsets: np.ndarray, order: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """(arrays w, b, ptr, idx of the gather kernel, number of weights kept in real filters) of a weight (o, positions) whose positions lie at ``offsets``; visited in ``order``, else as they come.

    ``ptr`` holds for each group (first entry of idx, number of entries, first float of w); ``w`` holds per entry the weights of the group's filters.
    """
    filters = weight.shape[0]
    pitch = groups[-1].start + groups[-1].count * groups[-1].lanes * groups[-1].vectors
    padded = weight
    if pitch != filters:
        padded = np.zeros((pitch, weight.shape[1]), np.float32)
        padded[:filters] = weight
    ptr, idx, packed, kept, entries, floats = [], [], [], 0, 0, 0
    for group in groups:
        size = group.lanes * group.vectors
        part = padded[group.start : group.start + group.count * size].reshape(group.count, size, -1)
        union = (part != 0).any(1)
        counts = union.sum(1)
        number, place = np.nonzero(union if order is None else union[:, order])
        column = place if order is None else order[place]
        first = entries + np.concatenate(([0], np.cumsum(counts)[:-1]))
        ptr.append(np.stack([first, counts, floats + (first - entries) * size], 1))
        idx.append(offsets[column])
        packed.append(part[number, :, column].ravel())
        real = np.clip(filters - group.start - np.arange(group.count) * size, 0, size)
        kept += int((counts * real).sum())
        entries += int(counts.sum())
        floats += packed[-1].size
    shift = np.zeros(pitch, np.float32)
    shift[:filters] = bias
    arrays = {"w": np.concatenate(packed), "b": shift, "ptr": np.concatenate(ptr).ravel().astype(np.int32), "idx": np.concatenate(idx).astype(np.int32)}
    return arrays, kept
