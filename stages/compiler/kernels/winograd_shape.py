"""The sizes of a Winograd convolution: its grid of tiles, blocks, and where things lie in scratch memory. Imports no TVM."""

from __future__ import annotations

from dataclasses import dataclass

from stages.compiler.kernels.units import split
from stages.compiler.kernels.winograd_transforms import TAPS, constants
from stages.compiler.target import Target

TOGETHER = 4  # input channels whose weights of a place lie together


@dataclass(frozen=True)
class Blocking:
    """How the work is divided: tiles of ``rows`` x ``cols`` results, at most ``tiles`` of them a block; ``vectors`` vectors of ``lanes`` filters a block.

    ``chunk``: the input channels whose weights are transformed at a time, when they are needed; 0: all weights were transformed at compile time.
    ``beside``: blocks of filters of a unit; the products of a place are computed for all of them before those of the next, so that its inputs come from afar once. 1 where there are chunks.
    """

    rows: int
    cols: int
    tiles: int
    lanes: int
    vectors: int
    chunk: int = 0
    beside: int = 1

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
    def span(self) -> int:
        """Filters of a unit."""
        return self.wide * self.blocking.beside

    @property
    def filter_units(self) -> int:
        """Units that a block of tiles is divided into."""
        return -(-self.filters // self.span)

    @property
    def v_pitch(self) -> int:
        """Floats of the transformed inputs from one place to the next, within a block of ``lanes`` input channels."""
        return _odd(self.most * self.blocking.lanes)

    @property
    def v_block(self) -> int:
        """Floats of the transformed inputs from one block of input channels to the next."""
        return _odd(self.places * self.v_pitch)

    @property
    def q_pitch(self) -> int:
        """Floats of the products from one place to the next."""
        return _odd(self.most * self.span)

    @property
    def q(self) -> int:
        """First float of the products in scratch memory, behind the transformed inputs."""
        return -(-self.channels // self.blocking.lanes) * self.v_block

    @property
    def chunk(self) -> int:
        """Input channels whose weights are transformed at a time, 0 where they come transformed."""
        return min(self.blocking.chunk, self.channels)

    @property
    def u_pitch(self) -> int:
        """Floats of a block's weights from one place to the next: of all input channels as they come, or of TOGETHER of them in scratch memory."""
        return _odd(TOGETHER * self.wide) if self.chunk else self.channels * self.wide

    @property
    def u_block(self) -> int:
        """Floats of the weights that were transformed at run time from TOGETHER input channels to the next ones."""
        return _odd(self.places * self.u_pitch)

    @property
    def u(self) -> int:
        """First float of the weights that were transformed at run time in scratch memory, behind the products."""
        return self.q + self.places * self.q_pitch

    @property
    def constants(self) -> int:
        """First float of the transforms' constants in scratch memory, behind the weights."""
        return self.u + -(-self.chunk // TOGETHER) * self.u_block

    @property
    def weights(self) -> int:
        """Bytes of weights in the order in which they are read, filters filled up."""
        return 4 * (TAPS * TAPS if self.chunk else self.places) * self.channels * self.filter_units * self.span

    @property
    def scratch(self) -> int:
        """Bytes of scratch memory."""
        return (self.constants + len(constants(self.blocking.m))) * 4

    @property
    def units(self) -> int:
        """Blocks of tiles times blocks of filters that are computed together; consecutive units share their block of tiles, whose inputs are transformed once."""
        return sum(count for _, _, count in self.tile_blocks) * self.filter_units


def _odd(floats: int) -> int:
    """``floats`` rounded up to an odd number of cache lines, so that what lies at equal offsets of several places doesn't share one set of the cache."""
    return (-(-floats // 16) | 1) * 16


def panel(vectors: int, target: Target) -> int:
    """Tiles whose sums for ``vectors`` vectors of filters, the weights and one input fit the registers."""
    return max(1, (target.registers - 1 - vectors) // vectors)
