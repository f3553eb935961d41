"""Steps that are nothing but an epilogue: activations, sums, gates and per-channel scales that found no convolution to join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, View, merge
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on."""

    dims: tuple[int, int, int]
    x: View
    y: View
    out: Layout
    extras: tuple[View, ...]
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of an "elementwise" step, None for any other."""
    step, out = placed.step, placed.output
    if step.op != "elementwise":
        return None
    n, _, h, w = out.shape
    x = placed.inputs[0]
    source = x.view if x.shape == out.shape else (0, x.image, 0, 0)
    dims, views = merge((n, h, w), (source, out.view, *placed.extras))
    data = {}
    if ("affine",) in step.epilogue:
        data = {"w": padded(step.attrs["scale"], out.width), "b": padded(step.attrs["shift"], out.width)}
    names = ", ".join(str(item[0]) for item in step.epilogue) or "copy"
    return Kernel("elementwise", Spec(dims, views[0], views[1], out, views[2:], step.epilogue), step, data, "", 0, names, units([dims]))


def padded(values: np.ndarray, width: int) -> np.ndarray:
    """One number a channel, and zeros up to the whole vector."""
    result = np.zeros(width, np.float32)
    result[: values.size] = values.ravel()
    return result


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import epilogue, tir

    T = tir.T

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)

        def pixel(n: Any, i: Any, j: Any) -> None:
            for first, count, lanes, vectors in channel_blocks(spec.out.width, target.narrow, 4):
                with T.serial(0, count) as block:
                    for v in range(vectors):
                        place = epilogue.Place((n, i, j), block * (lanes * vectors) + (first + v * lanes), lanes)
                        epilogue.finish(o, o.x[place.index(spec.x)], spec.epilogue, place, spec.y, spec.extras)

        tir.nest(o, units([spec.dims]), spec.dims, pixel)

    return tir.function(name, body)
