"""How large a tile of a gather kernel is, by a small model of the processor's multiply-add and load ports. Imports numpy-free values only.

The model reproduces the measurements of one Zen 4 core (118 GFLOP/s peak): groups of 16 and 32 filters reach 97 to 99 % of the peak, of 8 filters 85 to 88 %, of 4 filters 45 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from stages.compiler.target import Target

_LATENCY = 4.0  # cycles from a multiply-add to the next on the same accumulator
_FIXED = 6  # instructions per position besides loads and multiply-adds: index, address, pointers, counter, branch (counted, NEON)
_LOOP = 0.2  # cycles per position that the model doesn't see: index load, addresses, branch
_TILE = 12.0  # cycles per tile and group besides the positions: bias, epilogue, loop set-up
_LINE = 1.2  # cycles per cache line that comes from the second level
_LINE_CHANNELS = 16
_VARIANT = 1.01  # a second tile size costs code and branches


@dataclass(frozen=True)
class Tile:
    """``rows`` x ``cols`` output pixels times ``vectors`` vectors of ``lanes`` output channels are held in registers."""

    rows: int
    cols: int
    lanes: int
    vectors: int

    @property
    def label(self) -> str:
        """E.g. "1x14 pixels x 2x16 channels"."""
        return f"{self.rows}x{self.cols} pixels x {self.vectors}x{self.lanes} channels"


def shape_of_group(filters: int, target: Target) -> tuple[int, int]:
    """(lanes, vectors) of a group of ``filters`` output channels: the widest vectors that divide it."""
    lanes = next((v for v in target.narrow if filters % v == 0), 1)
    return lanes, filters // lanes


def most_pixels(vectors: int, target: Target) -> int:
    """Pixels whose accumulators, the weights and one input fit the registers."""
    spare = target.registers - 1 - vectors - (0 if vectors == 1 and target.isa != "neon" else 1)  # one vector: AVX-512 reads the input from memory, AVX2 needs no further register (tir.multiply_add)
    return max(1, min(spare // vectors, 28))


def chains(pixels: int, lanes: int, vectors: int, target: Target) -> int:
    """How many sums run side by side for one result, so that a tile of few results isn't slowed by waiting for the sum before: 1, 2, 4 or 8."""
    results, wanted = pixels * vectors, 4 if target.fused_narrow and lanes == target.lanes else 8
    count = 1
    while count * results < wanted and 2 * count * results + vectors + 1 < target.registers:
        count *= 2
    return count


def cycles(pixels: int, lanes: int, vectors: int, target: Target) -> float:
    """Cycles per kept position of a tile."""
    halves = 2 if target.fused_narrow and lanes == target.lanes else 1
    arithmetic = 0.5 * halves * pixels * vectors
    loads = 0.5 * (pixels + halves * vectors + 1)
    return max(arithmetic, loads, issue(pixels * vectors, pixels, vectors, target), _LATENCY / chains(pixels, lanes, vectors, target)) + _LOOP


def issue(sums: int, numbers: int, vectors: int, target: Target) -> float:
    """Cycles until the instructions of a position have begun, where the target is bound by that: multiply-adds, loads of single ``numbers``, of pairs of ``vectors``, and the loop's."""
    return (sums + numbers + -(-vectors // 2) + _FIXED) / target.issue if target.issue else 0.0


@dataclass(frozen=True)
class Window:
    """What a convolution reads for one output pixel: kernel and stride along rows and columns, and input channels."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    channels: int = 1

    def lines(self, rows: int, cols: int, positions: int) -> float:
        """Cache lines (of 16 channels of a pixel) that a tile of rows x cols pixels reads when ``positions`` of all positions are kept; a compact tile shares most of them."""
        pixels = ((rows - 1) * self.stride[0] + self.kernel[0]) * ((cols - 1) * self.stride[1] + self.kernel[1])
        if self.kernel == (1, 1):
            pixels = rows * cols
        blocks = -(-self.channels // _LINE_CHANNELS)
        visits = positions * rows * cols / (blocks * pixels)  # of a line
        return pixels * blocks * (1 - math.exp(-visits))


@cache
def best_tile(height: int, width: int, lanes: int, vectors: int, positions: int, target: Target, window: Window = Window()) -> tuple[float, Tile]:
    """(cycles for all pixels of one group with ``positions`` kept positions, the Tile that takes them).

    The Tile is that of the nearest power of two of positions: masks of about the same density share compiled kernels.
    """
    usual = 2 ** round(math.log2(positions))
    costs = {tile: tile_cost(tile, height, width, usual, target, window) for tile in tiles(height, width, lanes, vectors, target)}
    best = min(costs, key=lambda tile: (costs[tile], -tile.rows * tile.cols))
    return tile_cost(best, height, width, positions, target, window), best


def tiles(height: int, width: int, lanes: int, vectors: int, target: Target) -> list[Tile]:
    """Every Tile that the registers hold; those that split the plane alike occur once."""
    most = most_pixels(vectors, target)
    return [Tile(rows, cols, lanes, vectors) for rows in _balanced(height, most) for cols in _balanced(width, most // rows)]


def tile_cost(tile: Tile, height: int, width: int, positions: int, target: Target, window: Window = Window()) -> float:
    """Cycles for all pixels of one group with ``positions`` kept positions."""
    parts = [(r, c, n * m) for r, n in _sizes(height, tile.rows) for c, m in _sizes(width, tile.cols)]
    total = sum(count * _tile_cycles(r, c, tile.lanes, tile.vectors, positions, target, window) for r, c, count in parts)
    return total * _VARIANT ** (len(parts) - 1)


def _balanced(total: int, most: int) -> list[int]:
    """The sizes up to ``most`` that a balanced split of ``total`` really has: 7 by at most 5 is 4 + 3, so 5 isn't one."""
    return [size for size in range(1, min(total, most) + 1) if _sizes(total, size)[0][0] == size]


def _tile_cycles(rows: int, cols: int, lanes: int, vectors: int, positions: int, target: Target, window: Window) -> float:
    return positions * cycles(rows * cols, lanes, vectors, target) + _TILE + rows * cols * vectors + _LINE * window.lines(rows, cols, positions)


def _sizes(total: int, size: int) -> list[tuple[int, int]]:
    """(tile size, number) of the balanced split of ``total`` by at most ``size``."""
    tiles = -(-total // size)
    base, longer = divmod(total, tiles)
    return [(s, n) for s, n in ((base + 1, longer), (base, tiles - longer)) if n]
