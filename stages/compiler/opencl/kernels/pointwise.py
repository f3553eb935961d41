"""Steps that compute each element from those at its place: elementwise ones, and the way in and out, which changes layout and storage type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.walk import Types, Walk, total, types, walk


@dataclass(frozen=True)
class Spec:
    """All that the code depends on."""

    walk: Walk
    out: Layout
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of an "elementwise", "input" or "output" step, nothing for any other."""
    step, out = placed.step, placed.output
    if step.op not in ("elementwise", "input", "output"):
        return ()
    data = {"w": np.asarray(step.attrs["scale"], np.float32), "b": np.asarray(step.attrs["shift"], np.float32)} if ("affine",) in step.epilogue else {}
    spec = Spec(walk(placed), out, step.epilogue, types(placed, storage, data))
    names = ", ".join(str(item[0]) for item in step.epilogue) or "layout and storage"
    return (Kernel("pointwise", spec, step, data, "", 0, names, total(spec.walk.items(out.shape[1]), out)),)


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code

    def body(o: Any, n: Any, c: Any, row: Any, tile: Any) -> None:
        col = code.first_pixel(spec.walk, tile)
        for k in range(spec.walk.count):
            place = (n, c, row, col + k * spec.walk.lanes)
            value = code.T.Bind(o.x.load(code.at(spec.walk.x, *place), spec.walk.lanes))
            code.finish(o, value, spec.epilogue, spec.walk, place, spec.walk.lanes)

    return code.function(name, spec.types, spec.walk.items(spec.out.shape[1]), body, spec.out)
