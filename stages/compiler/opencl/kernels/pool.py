"""Pooling of every kind: max, average, adaptive and global. A work item computes one pixel; its window, already clipped to the image, stands in a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.walk import Strides, Types, Walk, total, types

LOWEST = -3.4028234e38


@dataclass(frozen=True)
class Spec:
    """All that the code depends on."""

    kind: str
    walk: Walk
    out: Layout
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of a "pool" step, nothing for any other."""
    step, out = placed.step, placed.output
    if step.op != "pool":
        return ()
    n, _, h, w = out.shape
    extras = tuple(
        _strides(x) if mode == "full" else Strides(0, x.image, 1, 0, 0) for x, mode in zip(placed.inputs[1:], placed.modes, strict=True)
    )
    over = Walk((n, h, w), _strides(placed.inputs[0]), _strides(out), extras, 1, 1)
    data = {"ptr": np.asarray((*step.attrs["rows"], *step.attrs["cols"]), np.int32).ravel()}
    spec = Spec(step.attrs["kind"], over, out, step.epilogue, types(placed, storage, data))
    return (Kernel("pool", spec, step, data, "", 0, f"{spec.kind} pooling", total(over.items(out.shape[1]), out)),)


def _strides(layout: Layout) -> Strides:
    return Strides(layout.origin, layout.image, layout.channel, layout.row, layout.pitch)


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code

    T, highest, rows = code.T, spec.kind == "max", spec.walk.dims[1]

    def body(o: Any, n: Any, c: Any, row: Any, col: Any) -> None:
        top, bottom, high = (T.Bind(o.ptr.load(row * 3 + k)) for k in range(3))
        left, right, wide = (T.Bind(o.ptr.load(col * 3 + (rows * 3 + k))) for k in range(3))
        corner = T.Bind(code.at(spec.walk.x, n, c, top, left))
        result = code.accumulators(1, 1)
        T.buffer_store(result, T.float32(LOWEST if highest else 0.0), [0])
        with T.serial(0, bottom - top) as i, T.serial(0, right - left) as j:
            value = T.Bind(o.x.load(corner + i * spec.walk.x.row + j * spec.walk.x.pixel))
            T.buffer_store(result, code.tirx.max(result[0], value) if highest else result[0] + value, [0])
        mean = result[0] if highest else result[0] / T.cast(high * wide, "float32")
        code.finish(o, mean, spec.epilogue, spec.walk, (n, c, row, col), 1)

    return code.function(name, spec.types, spec.walk.items(spec.out.shape[1]), body, spec.out)
