"""How work items divide an output: which images, channels, rows and pixels each of them computes, and where these lie in every operand. Imports numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from stages.compiler.ir import Layout, merge
from stages.compiler.kernels.kernel import Placed

LOCAL = 64  # work items of a group: a multiple of every phone GPU's wave, within every one's limit
VECTOR = 4  # pixels of a work item: a float4
Types = tuple[tuple[str, str], ...]
"""(operand, "float32" | "float16" | "int32") in the order of a kernel's parameters: x, the further operands e0 to e2, packed data (w, b, ptr, idx), y."""


@dataclass(frozen=True)
class Strides:
    """Where element 0 lies, and floats from one image, channel, row and pixel to the next."""

    origin: int
    image: int
    channel: int
    row: int
    pixel: int

    @property
    def one(self) -> bool:
        """Whether all pixels of a channel read the same number."""
        return self.row == self.pixel == 0


@dataclass(frozen=True)
class Walk:
    """(images, rows, columns) of the output, possibly merged to fewer and longer rows; the operands' strides along them; ``pixels`` of a row for each work item, in vectors of ``lanes``."""

    dims: tuple[int, int, int]
    x: Strides
    y: Strides
    extras: tuple[Strides, ...]
    pixels: int
    lanes: int

    @property
    def tiles(self) -> int:
        """Work items of a row. The last one begins earlier where ``pixels`` don't divide the row: two then compute the same."""
        return -(-self.dims[2] // self.pixels)

    @property
    def count(self) -> int:
        """Vectors of a work item and filter."""
        return self.pixels // self.lanes

    def single(self) -> Walk:
        """The same walk, pixel by pixel."""
        return replace(self, pixels=1, lanes=1)

    def items(self, channels: int) -> tuple[int, int, int, int]:
        """The work items as a grid, the last dimension fastest, with ``channels`` of them beside one another."""
        return (self.dims[0], channels, self.dims[1], self.tiles)


def walk(placed: Placed, stride: tuple[int, int] = (1, 1)) -> Walk:
    """The walk over a step's output, with ``stride`` pixels of its first operand from one output pixel to the next."""
    source, out = placed.inputs[0], placed.output
    n, _, h, w = out.shape
    x = (source.origin, source.image, source.row * stride[0], source.pitch * stride[1])
    channels = [source.channel, out.channel, *(e.channel if mode == "full" else 1 for e, mode in zip(placed.inputs[1:], placed.modes, strict=True))]
    dims, views = merge((n, h, w), (x, out.view, *placed.extras))
    found = [Strides(v[0], v[1], c, v[2], v[3]) for v, c in zip(views, channels, strict=True)]
    pixels = VECTOR if dims[2] >= VECTOR else 1
    whole = all(s.pixel == 1 or (s.one and index > 1) for index, s in enumerate(found))
    return Walk(dims, found[0], found[1], tuple(found[2:]), pixels, pixels if whole else 1)


def types(placed: Placed, storage: str, data: dict[str, np.ndarray]) -> Types:
    """The parameters of a step's kernel. Activations are stored as ``storage``; the caller's memory is always float32."""
    step = placed.step
    x = "float32" if step.op == "input" else storage
    y = "float32" if step.op == "output" else storage
    extras = tuple((f"e{k}", storage) for k in range(len(step.inputs) - 1))
    return (("x", x), *extras, *((name, str(array.dtype)) for name, array in data.items()), ("y", y))


def frame_cells(out: Layout) -> int:
    """Pixels of all frames of a Layout."""
    return out.shape[0] * out.shape[1] * (out.rows * out.cols - out.shape[2] * out.shape[3])


def total(grid: tuple[int, ...], out: Layout) -> int:
    """Work items of a kernel: those of ``grid``, then one for each pixel of the frames."""
    return prod(grid) + frame_cells(out)
