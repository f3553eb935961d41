"""Parts of tensors, moved: concat (one copy an operand), slice, pad, shuffle, transpose, upsampling; as loops that step through source and target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

Steps = tuple[int, int, int, int]  # along n, c, h, w


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``loops`` are (rounds, floats from round to round in x, the same in y), outermost first; ``x`` and ``y`` where they begin. With ``vector`` the last one
    is consecutive floats on both sides. ``fill`` goes where nothing is copied to; ``frame``: this step zeroes the frame of ``out``."""

    loops: tuple[tuple[int, int, int], ...]
    x: int
    y: int
    vector: bool
    out: Layout
    fill: float | None
    frame: bool


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "copy" step, None for any other.

    The step's attrs: ``loops`` of (rounds, steps in the source, steps in the target), ``read`` and ``write``, the places where they begin, all along (n, c, h, w); ``first``: of several
    copies into one Value, the one that zeroes the frame; ``fill``.
    """
    step = placed.step
    if step.op != "copy":
        return None
    source, out, a = placed.inputs[0], placed.output, step.attrs
    found = [(count, _floats(read, source), _floats(write, out)) for count, read, write in a["loops"]]
    found.sort(key=lambda loop: (loop[1:] == (1, 1), -loop[2]))  # writes in order, the consecutive ones innermost
    vector = bool(found) and found[-1][1:] == (1, 1)
    x, y = _floats(a["read"], source) + source.origin, _floats(a["write"], out) + out.origin
    spec = Spec(tuple(found) or ((1, 0, 0),), x, y, vector, out, a["fill"], a["first"])
    return Kernel("copy", spec, step, {}, "", 0, "copy of a part", _units(spec))


def _floats(steps: Steps, layout: Layout) -> int:
    return sum(step * size for step, size in zip(steps, (layout.image, layout.channel, layout.row, layout.pitch), strict=True))


def _dims(spec: Spec) -> tuple[int, ...]:
    """The loops around the innermost statement."""
    return tuple(count for count, _, _ in (spec.loops[:-1] if spec.vector else spec.loops)) or (1,)


def _units(spec: Spec) -> int:
    """One where the rest is filled first: a part must not be overwritten by another thread's filling."""
    return 1 if spec.fill is not None else units([_dims(spec)])


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T = tir.T

    def body(o: Any) -> None:
        if spec.frame:
            tir.zero_frame(o, spec.out, target.narrow)
        if spec.fill is not None:
            _fill(o, spec, target)

        def part(*indices: Any) -> None:
            read = T.Bind(sum((index * loop[1] for index, loop in zip(indices, spec.loops, strict=False)), spec.x))
            write = T.Bind(sum((index * loop[2] for index, loop in zip(indices, spec.loops, strict=False)), spec.y))
            if not spec.vector:
                T.buffer_store(o.y, o.x[read], [write])
                return
            for first, count, lanes, _ in channel_blocks(spec.loops[-1][0], target.narrow, 1):
                with T.serial(0, count) as block:
                    tir.store(o.y, write + (block * lanes + first), o.x[tir.at(read + (block * lanes + first), lanes)], lanes)

        tir.nest(o, _units(spec), _dims(spec), part)

    return tir.function(name, body)


def _fill(o: Any, spec: Spec, target: Target) -> None:
    """Set all pixels of the output; of a Value that is part of a buffer, its own floats alone."""
    from stages.compiler.kernels import tir

    assert spec.fill is not None
    (n_, c_, h_, w_), out = spec.out.shape, spec.out
    with tir.T.serial(0, n_ * c_ if out.planar else n_) as plane, tir.T.serial(0, h_) as i, tir.T.serial(0, w_) as j:
        pixel = tir.T.Bind(plane * (out.channel if out.planar else out.image) + i * out.row + j * out.pitch + out.origin)
        tir.fill(o.y, pixel, out.width, spec.fill, target.narrow)
