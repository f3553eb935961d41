"""The sizes of a Winograd convolution: its grid of tiles, blocks, and where things lie in scratch memory. Imports no TVM."""

from __future__ import annotations

from dataclasses import dataclass

from stages.compiler.ir import round_up
from stages.compiler.kernels.units import split
from stages.compiler.kernels.winograd_transforms import constants
from stages.compiler.target import Target

L3_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Blocking:
    """How the work is divided: tiles of ``rows`` x ``cols`` results, at most ``tiles`` of them a block; ``vectors`` vectors of ``lanes`` filters a block."""

    rows: int
    cols: int
    tiles: int
    lanes: int
    vectors: int

    @property
    def m(self) -> tuple[int, int]:
        """(rows, columns) of a tile's results."""
        return (self.rows, self.cols)


@dataclass(frozen=True)
class Shape:
    """A convolution and its Blocking. ``dims`` are (images, rows, columns) of the result; ``channels`` of the input.

    Example: dims (1, 56, 56), 64 channels and filters, F(4x4) by 14 tiles and 2x16 filters: a grid of (1, 14, 14) tiles in 14 blocks, 2 blocks of filters, 28 units.
    """

    dims: tuple[int, int, int]
    channels: int
    filters: int
    blocking: Blocking

    @property
    def grid(self) -> tuple[int, int, int]:
        """(images, rows, columns) of tiles."""
        m = self.blocking.m
        return (self.dims[0], -(-self.dims[1] // m[0]), -(-self.dims[2] // m[1]))

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def places(self) -> int:
        """Points of the transform domain."""
        return (self.blocking.m[0] + 2) * (self.blocking.m[1] + 2)

    @property
    def tile_blocks(self) -> list[tuple[int, int, int]]:
        """(tiles, first tile, number of blocks), at most two sizes, the larger first."""
        return split(self.tiles, self.blocking.tiles)

    @property
    def most(self) -> int:
        """Tiles of the largest block."""
        return self.tile_blocks[0][0]

    @property
    def wide(self) -> int:
        """Filters of a block."""
        return self.blocking.vectors * self.blocking.lanes

    @property
    def filter_blocks(self) -> int:
        """Number of blocks of filters."""
        return -(-self.filters // self.wide)

    @property
    def v_pitch(self) -> int:
        """Floats of the transformed inputs from one place to the next."""
        return _odd(self.most * round_up(self.channels, self.blocking.lanes))

    @property
    def q_pitch(self) -> int:
        """Floats of the products from one place to the next."""
        return _odd(self.most * self.wide)

    @property
    def q(self) -> int:
        """First float of the products in scratch memory, behind the transformed inputs."""
        return self.places * self.v_pitch

    @property
    def constants(self) -> int:
        """First float of the transforms' constants in scratch memory, behind the products."""
        return self.q + self.places * self.q_pitch

    @property
    def scratch(self) -> int:
        """Bytes of scratch memory."""
        return (self.constants + len(constants(self.blocking.m))) * 4

    @property
    def streamed(self) -> bool:
        """Whether weights are asked for ahead of their use. Where they come from main memory, its bandwidth is the limit: measured, 3 to 8 % faster below, 5 % slower above."""
        return 4 * self.places * self.channels * self.filter_blocks * self.wide <= L3_BYTES // 2

    @property
    def units(self) -> int:
        """Blocks of tiles times blocks of filters; consecutive units share their block of tiles, whose inputs are transformed once."""
        return sum(count for _, _, count in self.tile_blocks) * self.filter_blocks


def _odd(floats: int) -> int:
    """``floats`` rounded up to an odd number of cache lines, so that what lies at equal offsets of several places doesn't share one set of the cache."""
    return (-(-floats // 16) | 1) * 16


def panel(vectors: int, target: Target) -> int:
    """Tiles whose sums for ``vectors`` vectors of filters, the weights and one input fit the registers."""
    return max(1, (target.registers - 1 - vectors) // vectors)
