"""Depthwise convolutions: a work item computes a few neighbouring pixels of one channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.walk import Types, Walk, total, types, walk

UNROLLED = 25  # positions of a window up to which it is written out


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``step``: floats from one row and column of the window to the next; ``corner``: from an output pixel's place in the input to the first."""

    walk: Walk
    window: tuple[int, int]
    step: tuple[int, int]
    corner: int
    out: Layout
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of a "depthwise" step, nothing for any other."""
    step, out, source = placed.step, placed.output, placed.inputs[0]
    if step.op != "depthwise":
        return ()
    assert step.weight is not None and step.bias is not None
    a, (rows, cols) = step.attrs, step.weight.shape[2:]
    data = {"w": np.ascontiguousarray(step.weight).ravel().astype(storage), "b": step.bias.astype(np.float32)}
    corner = -(a["padding"][0] * source.row + a["padding"][1])
    spec = Spec(walk(placed, a["stride"]), (rows, cols), (source.row * a["dilation"][0], a["dilation"][1]), corner, out, step.epilogue, types(placed, storage, data))
    macs = step.weight.size * out.shape[0] * out.shape[2] * out.shape[3]
    return (Kernel("depthwise", spec, step, data, f"{spec.walk.pixels}x1", macs, "depthwise", total(spec.walk.items(out.shape[1]), out)),)


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code

    T, over, (rows, cols) = code.T, spec.walk, spec.window

    def body(o: Any, n: Any, c: Any, row: Any, tile: Any) -> None:
        col = code.first_pixel(over, tile)
        corner = T.Bind(code.at(over.x, n, c, row, col) + spec.corner)
        sums = code.accumulators(over.count, over.lanes)
        bias = T.Bind(o.b.load(c))
        for p in range(over.count):
            T.buffer_store(sums, T.broadcast(bias, over.lanes) if over.lanes > 1 else bias, [p])

        def position(i: Any, j: Any) -> None:
            weight = T.Bind(o.w.load((c * rows + i) * cols + j))
            for p in range(over.count):
                value = o.x.load(corner + i * spec.step[0] + j * spec.step[1] + p * over.lanes * over.x.pixel, over.lanes)
                T.buffer_store(sums, sums[p] + value * (T.broadcast(weight, over.lanes) if over.lanes > 1 else weight), [p])

        if rows * cols <= UNROLLED:
            for i in range(rows):
                for j in range(cols):
                    position(i, j)
        else:
            with T.serial(0, rows) as i, T.serial(0, cols) as j:
                position(i, j)
        for p in range(over.count):
            code.finish(o, sums[p], spec.epilogue, over, (n, c, row, col + p * over.lanes), over.lanes)

    return code.function(name, spec.types, over.items(spec.out.shape[1]), body, spec.out)
