"""Steps that are nothing but an epilogue, on planes; those that first add up sums of several threads (split_k.py) too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, Shape, Step, round_up
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``mask``: float of operand b where the mask of the image begins; ``terms``: how many floats apart what is added up lies."""

    x: tuple[int, int, int]
    out: Layout
    extras: tuple[planar.Operand, ...]
    mask: int
    epilogue: Epilogue
    terms: tuple[int, ...] = (0,)


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of an "elementwise" or "sum" step on planes, None for any other."""
    step, out, source = placed.step, placed.output, placed.inputs[0]
    if step.op not in ("elementwise", "sum") or not planar.suits(placed) or not fits(step, source.shape, out.shape, target):
        return None
    channels = out.shape[1]
    affine = ("affine",) in step.epilogue
    shift = np.zeros(round_up(channels, planar.ALIGNED), np.float32)
    shift[:channels] = step.attrs["shift"] if affine else 0
    data = {"b": np.concatenate([shift, planar.inside(out, target.lanes)])}
    if affine:
        data["w"] = np.asarray(step.attrs["scale"], np.float32)
    names = ", ".join(str(item[0]) for item in step.epilogue) or ("sum" if step.op == "sum" else "copy")
    terms = tuple(range(0, source.shape[1] * source.channel, channels * source.channel))
    spec = Spec((source.origin, source.image, source.channel), out, planar.operands(placed), len(shift), step.epilogue, terms)
    return Kernel("planar_elementwise", spec, step, data, "", 0, f"planes: {names}", units([planar.dims(out)]))


def fits(step: Step, source: Shape, out: Shape, target: Target) -> bool:
    """Whether an "elementwise" step goes over an image; a "sum" step always does."""
    return step.op == "sum" or (source == out and out[2:] != (1, 1))


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T, lanes, out = tir.T, target.lanes, spec.out

    def plane(o: Any, n: Any, c: Any, part: Any) -> None:
        with T.If(part == 0), T.Then():
            planar.zero_outside(o, T.Bind(n * out.image + c * out.channel), out, planar.vectors(out, lanes) * lanes, target.narrow)
        source = T.Bind(spec.x[0] + n * spec.x[1] + c * spec.x[2])
        ends = [planar.vectors(out, lanes) * p // out.parts for p in range(out.parts + 1)]
        with T.serial(tir.pick(part, ends[:-1]), tir.pick(part, ends[1:])) as v:
            value = T.Bind(o.x[tir.at(source + v * lanes, lanes)])
            for term in spec.terms[1:]:
                value = T.Bind(value + o.x[tir.at(source + term + v * lanes, lanes)])
            mask = T.Bind(o.b[tir.at(v * lanes + spec.mask, lanes)]) > tir.splat(0, lanes)
            planar.finish(o, value, spec.epilogue, spec.extras, n, c, v * lanes, lanes, out, mask)

    def body(o: Any) -> None:
        tir.nest(o, units([planar.dims(out)]), planar.dims(out), lambda n, part, c: plane(o, n, c, part))

    return tir.function(name, body)
