"""Pooling of whole images to one number a channel: a group of work items shares a channel's pixels and joins what each of them found."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from stages.compiler.ir import Epilogue
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.kernels.pool import LOWEST
from stages.compiler.opencl.walk import LOCAL, Types, Walk, types, walk


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``image``: rows and columns of the input."""

    kind: str
    image: tuple[int, int]
    walk: Walk
    row: int
    channels: int
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of a "pool" step whose only window is the whole image, and larger than a group of work items; nothing for any other."""
    step, out = placed.step, placed.output
    if step.op != "pool" or out.shape[2:] != (1, 1) or any(out.border):
        return ()
    source = placed.inputs[0]
    h, w = source.shape[2:]
    if step.attrs["rows"] != ((0, h, h),) or step.attrs["cols"] != ((0, w, w),) or h * w < LOCAL // 2:
        return ()
    over = walk(placed).single()
    spec = Spec(step.attrs["kind"], (h, w), over, source.row, out.shape[1], step.epilogue, types(placed, storage, {}))
    return (Kernel("global_pool", spec, step, {}, "", 0, f"{spec.kind} of whole images", prod(over.items(out.shape[1])) * LOCAL),)


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code, together

    T, (rows, cols), highest = code.T, spec.image, spec.kind == "max"

    def body(o: Any, local: Any, n: Any, c: Any, row: Any, col: Any) -> None:
        corner = T.Bind(code.at(spec.walk.x, n, c, row, col))
        result = code.accumulators(1, 1)
        T.buffer_store(result, T.float32(LOWEST if highest else 0.0), [0])
        with T.serial(0, -(-rows * cols // LOCAL)) as turn:
            k = T.Bind(turn * LOCAL + local)
            with T.If(k < rows * cols), T.Then():
                value = T.Bind(o.x.load(corner + code.tirx.truncdiv(k, cols) * spec.row + code.tirx.truncmod(k, cols)))
                T.buffer_store(result, code.tirx.max(result[0], value) if highest else result[0] + value, [0])
        found = together.added_up(result, 1, local, code.tirx.max if highest else None)
        with T.If(local == 0), T.Then():
            code.finish(o, found[0] if highest else found[0] * T.float32(1 / (rows * cols)), spec.epilogue, spec.walk, (n, c, row, col), 1)

    return together.function(name, spec.types, spec.walk.items(spec.channels), body)
