"""Parts of tensors, moved: concat (one copy an operand), slice, pad, shuffle, transpose, upsampling. A work item moves one number."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from stages.compiler.ir import Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.walk import Types, frame_cells, types

Loop = tuple[int, int, int]  # rounds, floats from round to round in the source, the same in the target


@dataclass(frozen=True)
class Spec:
    """All that the code depends on: ``loops``, outermost first, from float ``x`` of the source and ``y`` of the target. ``fill``: instead, every pixel of the target gets this number.
    ``out`` is None where another copy zeroes the target's frame."""

    loops: tuple[Loop, ...]
    x: int
    y: int
    fill: float | None
    out: Layout | None
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernels of a "copy" step (attrs: see the rule of the same name in stages/compiler/kernels), nothing for any other: where the rest is to be filled, that comes first."""
    step, out, source = placed.step, placed.output, placed.inputs[0]
    if step.op != "copy":
        return ()
    a, made = step.attrs, types(placed, storage, {})
    found = [(count, _floats(read, source), _floats(write, out)) for count, read, write in a["loops"]]
    loops = tuple(sorted(found, key=lambda loop: -loop[2])) or ((1, 0, 0),)  # neighbours write side by side
    kernels = []
    if a["fill"] is not None:
        n, c, h, w = out.shape
        whole = ((n, 0, out.image), (c, 0, out.channel), (h, 0, out.row), (w, 0, out.pitch))
        kernels.append(_kernel(placed, Spec(whole, 0, out.origin, a["fill"], out, made), "fill"))
    frame = out if a["first"] and a["fill"] is None else None
    x, y = _floats(a["read"], source) + source.origin, _floats(a["write"], out) + out.origin
    return (*kernels, _kernel(placed, Spec(loops, x, y, None, frame, made), "copy of a part"))


def _kernel(placed: Placed, spec: Spec, reason: str) -> Kernel:
    return Kernel("copy", spec, placed.step, {}, "", 0, reason, prod(loop[0] for loop in spec.loops) + (frame_cells(spec.out) if spec.out else 0))


def _floats(steps: tuple[int, int, int, int], layout: Layout) -> int:
    return sum(step * size for step, size in zip(steps, (layout.image, layout.channel, layout.row, layout.pitch), strict=True))


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code

    T = code.T

    def body(o: Any, *indices: Any) -> None:
        read, write = (T.Bind(sum((index * loop[side] for index, loop in zip(indices, spec.loops, strict=True)), T.int32(start))) for side, start in ((1, spec.x), (2, spec.y)))
        o.y.store(write, T.Bind(o.x.load(read)) if spec.fill is None else T.float32(spec.fill))

    return code.function(name, spec.types, [loop[0] for loop in spec.loops], body, spec.out)
