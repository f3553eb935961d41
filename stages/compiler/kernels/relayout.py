"""From pixel-major to planes and back: blocks of vectors, transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Layout
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import split, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

BLOCK = 8  # pixels and channels of a block: 8 vectors of 8 are transposed by 24 shuffles


@dataclass(frozen=True)
class Spec:
    """All that the code depends on: both Layouts, one of them planes."""

    source: Layout
    out: Layout

    @property
    def dims(self) -> tuple[int, int, int]:
        """Images, blocks of channels, rows; or rows before blocks."""
        n, c, h, _ = self.out.shape
        blocks = -(-c // BLOCK)
        return (n, h, blocks) if self.by_rows else (n, blocks, h)

    @property
    def by_rows(self) -> bool:
        """Whether threads divide the rows of the planes."""
        return max(self.source.parts, self.out.parts) > 1


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "relayout" step, None for any other."""
    if placed.step.op != "relayout":
        return None
    spec = Spec(placed.inputs[0], placed.output)
    return Kernel("relayout", spec, placed.step, {}, "", 0, "pixel-major to planes" if planar.is_plane(spec.out) else "planes to pixel-major", units([spec.dims]))


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T, out = tir.T, spec.out
    channels = out.shape[1]

    def visit(o: Any, n: Any, block: Any, y: Any) -> None:
        with T.If(block < channels // BLOCK):
            with T.Then():
                _row(o, spec, n, T.Bind(block * BLOCK), y, BLOCK, target)
            if channels % BLOCK:
                with T.Else():
                    _row(o, spec, n, channels - channels % BLOCK, y, channels % BLOCK, target)

    def body(o: Any) -> None:
        if not planar.is_plane(out):
            tir.zero_frame(o, out, target.narrow)
        tir.nest(o, units([spec.dims]), spec.dims, lambda n, a, b: visit(o, n, b, a) if spec.by_rows else visit(o, n, a, b))

    return tir.function(name, body)


def _row(o: Any, spec: Spec, n: Any, channel: Any, y: Any, count: int, target: Target) -> None:
    """One row of ``count`` channels, and the frame behind it."""
    from stages.compiler.kernels import tir

    T, out, width = tir.T, spec.out, spec.out.shape[3]
    if planar.is_plane(out):
        with T.serial(0, count) as c:
            planar.zero_frame(o, T.Bind(n * out.image + (channel + c) * out.channel), out, y, out.shape[2], target.narrow)
    for size, first, tiles in split(width, BLOCK):
        with T.serial(0, tiles) as tile:
            _block(o, spec, n, channel, y, T.Bind(tile * size + first), count, size)


def _place(layout: Layout, n: Any, channel: Any, y: Any, x: Any) -> Any:
    return layout.origin + n * layout.image + channel * layout.channel + y * layout.row + x * layout.pitch


def _block(o: Any, spec: Spec, n: Any, channel: Any, y: Any, x: Any, count: int, size: int) -> None:
    """``count`` channels times ``size`` pixels."""
    from stages.compiler.kernels import tir

    T, source, out = tir.T, spec.source, spec.out
    read, write = T.Bind(_place(source, n, channel, y, x)), T.Bind(_place(out, n, channel, y, x))
    if count == size == BLOCK:
        step = source.channel if source.planar else source.pitch
        loaded = [T.Bind(o.x[tir.at(read + i * step, BLOCK)]) for i in range(BLOCK)]
        step = out.channel if out.planar else out.pitch
        for i, vector in enumerate(transposed(loaded)):
            tir.store(o.y, write + i * step, vector, BLOCK)
        return
    for c in range(count):
        for i in range(size):
            T.buffer_store(o.y, o.x[read + (c * source.channel + i * source.pitch)], [write + (c * out.channel + i * out.pitch)])


def transposed(rows: Sequence[Any]) -> list[Any]:
    """The columns of a square of vectors, by log2(n) rounds of interleaving rows that lie half the square apart."""
    from stages.compiler.kernels import tir

    size, found = len(rows), list(rows)
    low = [i // 2 + (i % 2) * size for i in range(size)]
    high = [i + size // 2 for i in low]
    for _ in range(size.bit_length() - 1):
        joined = []
        for i in range(size // 2):
            pair = [found[i], found[i + size // 2]]
            joined += [tir.T.Bind(tir.tirx.Shuffle(pair, low)), tir.T.Bind(tir.tirx.Shuffle(pair, high))]
        found = joined
    return found
