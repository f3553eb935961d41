"""Kernels in which a group of work items shares one result: each finds a part, and shared memory adds them up. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm.script.ir_builder import IRBuilder

from stages.compiler.kernels.tir import T, tirx
from stages.compiler.opencl.code import decoded
from stages.compiler.opencl.parameters import signature
from stages.compiler.opencl.walk import LOCAL, Types


def function(name: str, types: Types, grid: Sequence[int], body: Callable[..., None]) -> Any:
    """The PrimFunc ``name`` in which a group of LOCAL work items does each place of ``grid`` together: ``body(operands, number within the group, *indices)``."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        o = signature(name, types)
        with T.launch_thread("blockIdx.x", prod(grid)) as group, T.launch_thread("threadIdx.x", LOCAL) as local:
            body(o, local, *decoded(group, grid))
    return builder.get()


def rounds(count: Any) -> Any:
    """How often a group goes round until it has done ``count``."""
    return tirx.truncdiv(count + (LOCAL - 1), LOCAL)


def added_up(sums: Any, count: int, local: Any, join: Callable[[Any, Any], Any] | None = None) -> Any:
    """Shared memory in which float ``k * LOCAL`` is the sum (or what ``join`` makes) of all work items' ``sums[k]``, for each k below ``count``."""
    shared = T.alloc_buffer((count * LOCAL,), "float32", scope="shared")
    for k in range(count):
        T.buffer_store(shared, sums[k], [local + k * LOCAL])
    half = LOCAL // 2
    while half:
        T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))
        with T.If(local < half), T.Then():
            for k in range(count):
                mine, other = shared[local + k * LOCAL], shared[local + (k * LOCAL + half)]
                T.buffer_store(shared, join(mine, other) if join else mine + other, [local + k * LOCAL])
        half //= 2
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))
    return shared
