"""Layer norm and softmax over the channels of each pixel; a work item does one pixel, and neighbours read neighbouring floats of each plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.kernels.pool import LOWEST
from stages.compiler.opencl.walk import Types, Walk, total, types, walk


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``eps`` is None for softmax."""

    walk: Walk
    channels: int
    eps: float | None
    out: Layout
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of a "layer_norm" or "softmax" step, nothing for any other."""
    step, out = placed.step, placed.output
    if step.op not in ("layer_norm", "softmax"):
        return ()
    data = {"w": np.asarray(step.attrs["scale"], np.float32), "b": np.asarray(step.attrs["shift"], np.float32)} if step.op == "layer_norm" else {}
    over = walk(placed).single()
    spec = Spec(over, out.shape[1], step.attrs.get("eps"), out, step.epilogue, types(placed, storage, data))
    return (Kernel("normalise", spec, step, data, "", 0, f"{step.op} of each pixel's channels", total(over.items(1), out)),)


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code
    from stages.compiler.opencl.activations import call

    T, tirx, over, channels = code.T, code.tirx, spec.walk, spec.channels

    def body(o: Any, n: Any, _: Any, row: Any, col: Any) -> None:
        def value(c: Any) -> Any:
            return T.Bind(o.x.load(code.at(over.x, n, c, row, col)))

        def reduced(start: float, take: Callable[[Any, Any], Any]) -> Any:
            result = code.accumulators(1, 1)
            T.buffer_store(result, T.float32(start), [0])
            with T.serial(0, channels) as c:
                T.buffer_store(result, take(result[0], value(c)), [0])
            return T.Bind(result[0])

        if spec.eps is None:
            highest = reduced(LOWEST, tirx.max)
            scale = T.Bind(T.float32(1) / reduced(0.0, lambda total, v: total + call("exp", v - highest)))
        else:
            highest = T.Bind(reduced(0.0, lambda total, v: total + v) * T.float32(1 / channels))
            variance = reduced(0.0, lambda total, v: total + (v - highest) * (v - highest)) * T.float32(1 / channels)
            scale = T.Bind(T.float32(1) / tirx.sqrt(variance + T.float32(spec.eps)))
        with T.serial(0, channels) as c:
            distance = T.Bind(value(c) - highest)
            code.finish(o, (call("exp", distance) if spec.eps is None else distance) * scale, spec.epilogue, over, (n, c, row, col), 1)

    return code.function(name, spec.types, over.items(1), body, spec.out)
