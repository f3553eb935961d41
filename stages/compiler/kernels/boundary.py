"""From the caller's memory (contiguous NCHW) into the workspace and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Layout
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on: which way, and the Layout inside."""

    inward: bool
    inside: Layout

    @property
    def by_rows(self) -> bool:
        """Whether threads divide the rows of planes."""
        return self.inside.parts > 1

    @property
    def dims(self) -> tuple[int, ...]:
        """Images and rows and pixels or planes, or planes and rows."""
        n, c, h, w = self.inside.shape
        return ((n, h, c) if self.by_rows else (n * c, h)) if self.inside.planar else (n, h, w)


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of an "input" or "output" step, None for any other."""
    step = placed.step
    if step.op not in ("input", "output"):
        return None
    inward = step.op == "input"
    inside = placed.output if inward else placed.inputs[0]
    spec = Spec(inward, inside)
    return Kernel("boundary", spec, step, {}, "", 0, f"NCHW {'to' if inward else 'from'} {'planes' if inside.planar else 'NHWC'}", units([spec.dims]))


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    def body(o: Any) -> None:
        if spec.inside.planar:
            _rows(o, spec, target)
        elif spec.inside.shape[2:] == (1, 1):
            _vectors(o, spec, target)
        else:
            _transpose(o, spec, target)

    return tir.function(name, body, unaligned=("x",) if spec.inward else ("y",))


def _rows(o: Any, spec: Spec, target: Target) -> None:
    """Planes get a frame, or lose it: one copy of each row."""
    from stages.compiler.kernels import tir

    T, inside = tir.T, spec.inside
    _, c, h, w = inside.shape

    def row(p: Any, i: Any) -> None:
        if spec.inward:
            planar.zero_frame(o, T.Bind(p * inside.channel), inside, i, h, target.narrow)
        for first, count, lanes, _ in channel_blocks(w, target.narrow, 1):
            with T.serial(0, count) as block:
                column = T.Bind(block * lanes + first)
                here, there = p * inside.channel + i * inside.row + inside.origin + column, (p * h + i) * w + column
                if spec.inward:
                    tir.store(o.y, here, o.x[tir.at(there, lanes)], lanes)
                else:
                    tir.store(o.y, there, o.x[tir.at(here, lanes)], lanes)

    tir.nest(o, units([spec.dims]), spec.dims, (lambda n, i, channel: row(n * c + channel, i)) if spec.by_rows else row)


def _vectors(o: Any, spec: Spec, target: Target) -> None:
    """A matrix (n, c): rows of ``image`` floats inside, of c outside."""
    from stages.compiler.kernels import tir

    inside = spec.inside
    channels = inside.shape[1]
    if spec.inward:
        tir.zero_frame(o, inside, target.narrow)

    def vector(n: Any, _i: Any, _j: Any) -> None:
        for first, count, lanes, _ in channel_blocks(channels, target.narrow, 1):
            with tir.T.serial(0, count) as block:
                column = tir.T.Bind(block * lanes + first)
                here, there = n * inside.image + inside.origin + column, n * channels + column
                if spec.inward:
                    tir.store(o.y, here, o.x[tir.at(there, lanes)], lanes)
                else:
                    tir.store(o.y, there, o.x[tir.at(here, lanes)], lanes)

    tir.nest(o, units([spec.dims]), spec.dims, vector)


def _transpose(o: Any, spec: Spec, target: Target) -> None:
    from stages.compiler.kernels import tir

    T, inside = tir.T, spec.inside
    _, c_, h_, w_ = inside.shape
    if spec.inward:
        tir.zero_frame(o, inside, target.narrow)

    def pixel(n: Any, i: Any, j: Any) -> None:
        here = T.Bind(n * inside.image + i * inside.row + j * inside.pitch + inside.origin)
        with T.serial(0, c_) as c:
            there = ((n * c_ + c) * h_ + i) * w_ + j
            if spec.inward:
                T.buffer_store(o.y, o.x[there], [here + c])
            else:
                T.buffer_store(o.y, o.x[here + c], [there])
        if spec.inward and inside.width > c_:
            tir.fill(o.y, here + c_, inside.width - c_, 0.0, target.narrow)

    tir.nest(o, units([spec.dims]), spec.dims, pixel)
