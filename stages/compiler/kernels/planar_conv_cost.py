"""What convolutions on planes are expected to cost (planar_conv.py): which groups of filters and tiles of pixels, in which order, by how many bands. Imports numpy only."""

from __future__ import annotations

import numpy as np

from stages.compiler.ir import Layout, Step
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Placed
from stages.compiler.kernels.packing import Group
from stages.compiler.kernels.units import split
from stages.compiler.target import Target
from stages.compiler.tiles import issue

L2_BYTES = 512 * 1024
_LOOP, _TILE = 0.6, 30.0  # cycles per position and per tile beside the arithmetic: addresses, loop; bias, epilogue, stores
_SHARED = (4, 6, 8, 12, 16)  # filters of a group
_SINGLE = (1, 2)  # the same for masks that filters don't share (per-filter patterns): half the speed per multiply-add, but none for nothing
_MIXED = 1.1  # times the weights that a mask keeps: more in unions of four filters means that it isn't shared
_CROSSING = 1.45  # times the cost of an aligned load, that of vectors of which most lie in two cache lines; four filters and more hide it
_MOST_VECTORS = 12


def shifted(step: Step) -> float:
    """The share of a convolution's positions that lie beside the result's pixel: their vectors of pixels lie in two cache lines each."""
    assert step.weight is not None
    return 1 - 1 / step.weight.shape[3]


def choose(step: Step, out: Layout, target: Target) -> tuple[float, tuple[Group, ...], int]:
    """(cycles by a small model, groups of filters, vectors of pixels per tile) for a convolution whose result lies at ``out``."""
    assert step.weight is not None
    return min(options(step.weight.reshape(len(step.weight), -1), out, shifted(step), target), key=lambda found: found[0])


def options(flat: np.ndarray, out: Layout, shifted: float, target: Target) -> list[tuple[float, tuple[Group, ...], int]]:
    """The same for every grouping and tile that the registers hold."""
    count = planar.vectors(out, target.lanes)
    found, kept = [], flat != 0
    for filters in sorted({min(f, len(flat)) for f in group_sizes(kept)}):
        groups = filter_groups(len(flat), filters)
        positions = [_positions(kept, group) for group in groups]
        for vectors in range(1, min(count, _MOST_VECTORS) + 1):
            if filters * vectors + vectors + 1 <= target.registers:
                cost = sum(_cycles(p, g, vectors, count, shifted, target) for p, g in zip(positions, groups, strict=True))
                found.append((out.shape[0] * cost, groups, vectors))
    return found


def group_sizes(kept: np.ndarray) -> tuple[int, ...]:
    """Filters of a group worth a try for a mask (o, positions)."""
    if len(kept) < 4:
        return _SHARED
    shared = _positions(kept, Group(0, len(kept) // 4, 4, 1)) * 4 <= _MIXED * np.count_nonzero(kept[: len(kept) // 4 * 4])
    return _SHARED if shared else _SINGLE + _SHARED


def filter_groups(total: int, filters: int) -> tuple[Group, ...]:
    """``total`` filters in groups of ``filters``, the rest in one of its own."""
    whole, rest = divmod(total, filters)
    found = [Group(0, whole, filters, 1)] if whole else []
    return (*found, *([Group(whole * filters, 1, rest, 1)] if rest else []))


def _positions(kept: np.ndarray, group: Group) -> int:
    """Positions that all groups of ``group`` keep together."""
    return int(kept[group.start : group.start + group.count * group.lanes].reshape(group.count, group.lanes, -1).any(1).sum())


def _cycles(positions: int, group: Group, vectors: int, count: int, shifted: float, target: Target) -> float:
    total = 0.0
    for size, _, tiles in split(count, vectors):
        arithmetic = max(group.lanes * size * (1.0 if target.fused_narrow else 0.5), issue(group.lanes * size, group.lanes, size, target))
        crossing = _CROSSING if group.lanes in _SINGLE and not target.reach.crossing else 1.0
        loads = 0.5 * (2 * size * crossing * (1 if target.fused_narrow else 0.5) + group.lanes + 1)
        far = size * (shifted * target.reach.crossing + target.reach.apart)
        total += tiles * (positions * (max(arithmetic, loads) + 0.15 * loads + far + _LOOP) + group.count * (_TILE + 2 * group.lanes * size))
    return total


def pixels_outer(count: int, vectors: int, flat: np.ndarray, source: Layout, groups: tuple[Group, ...], target: Target) -> bool:
    """Whether weights are read again for every tile (else the input for every group): whichever moves fewer bytes, unless the weights stay in the second-level cache; not where the input is read by bands."""
    if 4 * source.size // source.shape[0] > target.reach.second:
        return False
    kept, tiles = np.count_nonzero(flat) * 4, -(-count // vectors) * source.shape[0]
    inputs = source.size * 4
    return bool(kept * tiles <= inputs * sum(g.count for g in groups) or (kept <= L2_BYTES and inputs > L2_BYTES))


def bands(weights: int, placed: Placed, by_pixels: bool, target: Target) -> int:
    """Into how many bands each image is divided: the parts that threads divide its planes into, unless the packed ``weights`` (bytes), of which each thread reads all then, are more than the input; and as many
    more as keep a band's input in the second-level cache, from where it is read for every group of filters.

    Measured, one Granite Rapids core, blocks of 8 at 8.2x: 128 channels at 112x112 6.9 -> 3.6 ms (by pixels 4.2), 64 at 224x224 5.1 -> 3.7, 256 at 56x56 6.4 -> 3.5.
    """
    if placed.step.attrs.get("split"):  # threads have filters of their own, and read their part of the input only
        return 1
    image, room = 4 * placed.inputs[0].size // placed.output.shape[0], target.reach.second
    parts = placed.output.parts if weights <= image else 1
    return parts if by_pixels or image <= parts * room else parts * -(-2 * image // (parts * room))
