"""Softmax over each pixel's channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Epilogue, Layout, View, merge
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
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "softmax" step on pixel-major Values, None for any other."""
    step, out = placed.step, placed.output
    if step.op != "softmax" or out.planar or placed.inputs[0].planar:
        return None
    n, c, h, w = out.shape
    dims, views = merge((n, h, w), (placed.inputs[0].view, out.view, *placed.extras))
    return Kernel(
        "softmax", Spec(dims, c, views[0], views[1], out, views[2:], step.epilogue), step, {}, "", 0, "softmax of each pixel's channels", units([dims])
    )


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc: the largest channel, the exponentials (kept in y) and their sum, the quotients."""
    from stages.compiler.kernels import epilogue, reduction, tir

    T = tir.T

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)

        def pixel(n: Any, i: Any, j: Any) -> None:
            x = T.Bind(n * spec.x[1] + i * spec.x[2] + j * spec.x[3] + spec.x[0])
            y = T.Bind(n * spec.y[1] + i * spec.y[2] + j * spec.y[3] + spec.y[0])
            highest = reduction.over_channels(o.x, x, spec.channels, target, reduction.LOWEST, lambda a, v, lanes: tir.tirx.max(a, v), tir.tirx.max)
            for first, count, lanes, _ in channel_blocks(spec.out.width, target.narrow, 1):
                with T.serial(0, count) as block:
                    channel = T.Bind(block * lanes + first)
                    tir.store(o.y, y + channel, epilogue.exp(o.x[tir.at(x + channel, lanes)] - tir.spread(highest, lanes), lanes), lanes)
            total = reduction.over_channels(o.y, y, spec.channels, target, 0.0, lambda a, v, lanes: a + v, lambda a, b: a + b)
            share = T.Bind(T.float32(1.0) / total)
            for first, count, lanes, _ in channel_blocks(spec.out.width, target.narrow, 1):
                with T.serial(0, count) as block:
                    place = epilogue.Place((n, i, j), block * lanes + first, lanes)
                    epilogue.finish(o, o.y[place.index(spec.y)] * tir.spread(share, lanes), spec.epilogue, place, spec.y, spec.extras)

        tir.nest(o, units([spec.dims]), spec.dims, pixel)

    return tir.function(name, body)
