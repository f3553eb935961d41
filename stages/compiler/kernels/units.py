"""How a kernel's loops are divided: into tiles, blocks of channels, and among threads: the outermost loops are flattened into units, and a call does a range of them. Imports nothing.

Every nest of loops of a kernel maps the call's range onto its own units by the same rule, so any split of 0..units into ranges covers each nest exactly once. Nests of few units come one after
another instead (tir.overlap): by the rule the last thread would get the odd one of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

WANTED = 32  # units per nest where there are as many: enough that a few threads end together
IDLE = 0.3  # of a unit's time, what a few threads lose on average because the last ones wait


def outer(dims: Sequence[int]) -> int:
    """How many of the outermost loops are flattened: as few as make WANTED units, else all. (56, 4, 3) -> 1; (4, 4, 3) -> 3."""
    for count in range(1, len(dims)):
        if prod(dims[:count]) >= WANTED:
            return count
    return len(dims)


def units(nests: Iterable[Sequence[int]]) -> int:
    """The units of a kernel with these nests of loops: those of its most divided nest. [(56, 4, 3), (7, 1)] -> 56."""
    return max(1, *(prod(dims[: outer(dims)]) for dims in nests), 1)


def split(total: int, size: int) -> list[tuple[int, int, int]]:
    """``total`` positions in balanced tiles of at most ``size``: (tile size, first position, number of tiles), at most two sizes. 10 by 7 -> [(5, 0, 2)]."""
    tiles = -(-total // size)
    base, longer = divmod(total, tiles)
    found = [(base + 1, 0, longer), (base, longer * (base + 1), tiles - longer)]
    return [f for f in found if f[2]]


def shares(total: int, parts: int, size: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """``total`` positions in ``parts`` parts of consecutive ones, each in balanced tiles of at most ``size``: (tile size, first position of each part, tiles of each part), larger tiles first.

    7 by 2 in 2 parts -> [(2, (0, 3), (1, 2)), (1, (2, 7), (1, 0))]: 0 to 1 and 2; 3 to 4 and 5 to 6.
    """
    ends = [total * part // parts for part in range(parts + 1)]
    divided = [{s: (begin + first, tiles) for s, first, tiles in (split(end - begin, size) if end > begin else ())} for begin, end in pairwise(ends)]
    found = []
    for s in sorted({s for part in divided for s in part}, reverse=True):
        places = [part.get(s, (end, 0)) for part, end in zip(divided, ends[1:], strict=True)]
        found.append((s, tuple(first for first, _ in places), tuple(tiles for _, tiles in places)))
    return found


def channel_blocks(channels: int, choices: tuple[int, ...], most: int) -> list[tuple[int, int, int, int]]:
    """``channels`` floats as (first, number of blocks, lanes, vectors): blocks of up to ``most`` widest vectors, then narrower ones. 72 by 4x16 -> (0, 1, 16, 4), (64, 1, 8, 1)."""
    found, start = [], 0
    for lanes in (*choices, 1):
        for vectors in range(most, 0, -1):
            count = (channels - start) // (lanes * vectors)
            if count:
                found.append((start, count, lanes, vectors))
                start += count * lanes * vectors
    return found
