"""Layer norm: each pixel's channels to mean 0 and variance 1; gain, shift and what follows belong to the epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Epilogue, Layout, View, merge
from stages.compiler.kernels.elementwise import padded
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on."""

    dims: tuple[int, int, int]
    channels: int
    x: View
    y: View
    out: Layout
    extras: tuple[View, ...]
    eps: float
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "layer_norm" step on pixel-major Values, None for any other."""
    step, out = placed.step, placed.output
    if step.op != "layer_norm" or out.planar or placed.inputs[0].planar:
        return None
    n, c, h, w = out.shape
    dims, views = merge((n, h, w), (placed.inputs[0].view, out.view, *placed.extras))
    data = {"w": padded(step.attrs["scale"], out.width), "b": padded(step.attrs["shift"], out.width)}
    spec = Spec(dims, c, views[0], views[1], out, views[2:], step.attrs["eps"], step.epilogue)
    return Kernel("layer_norm", spec, step, data, "", 0, "mean and variance of each pixel's channels", units([dims]))


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import epilogue, reduction, tir

    T = tir.T

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)

        def pixel(n: Any, i: Any, j: Any) -> None:
            start = T.Bind(n * spec.x[1] + i * spec.x[2] + j * spec.x[3] + spec.x[0])

            def mean(value: Callable[[Any, int], Any]) -> Any:
                total = reduction.over_channels(o.x, start, spec.channels, target, 0.0, lambda a, v, lanes: a + value(v, lanes), lambda a, b: a + b)
                return T.Bind(total * T.float32(1.0 / spec.channels))

            middle = mean(lambda v, lanes: v)

            def squared(v: Any, lanes: int) -> Any:
                distance = T.Bind(v - tir.spread(middle, lanes))
                return distance * distance

            scale = T.Bind(T.float32(1.0) / tir.tirx.sqrt(mean(squared) + T.float32(spec.eps)))
            for first, count, lanes, _ in channel_blocks(spec.out.width, target.narrow, 1):
                with T.serial(0, count) as block:
                    place = epilogue.Place((n, i, j), block * lanes + first, lanes)
                    value = (o.x[place.index(spec.x)] - tir.spread(middle, lanes)) * tir.spread(scale, lanes)
                    epilogue.finish(o, value, spec.epilogue, place, spec.y, spec.extras)

        tir.nest(o, units([spec.dims]), spec.dims, pixel)

    return tir.function(name, body)
