"""Helpers for writing kernels as TIR: the common signature, loops over vectors, zeroed borders, and the build to an object file with plain C ABI. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.compilation_pipeline import finalize_device_passes

from stages.compiler.ir import Layout

# Every kernel has this C signature; operands it doesn't use are null. x: input; e0..e2: further activations; w, b: packed weights, bias; ptr, idx: sparsity; y: output.
OPERANDS = (
    ("x", "float32"),
    ("e0", "float32"),
    ("e1", "float32"),
    ("e2", "float32"),
    ("w", "float32"),
    ("b", "float32"),
    ("ptr", "int32"),
    ("idx", "int32"),
    ("y", "float32"),
)
_UNBOUNDED = 1 << 30  # the buffers' sizes are the planner's concern


def function(name: str, body: Callable[[SimpleNamespace], None], unaligned: tuple[str, ...] = ()) -> Any:
    """The PrimFunc ``name`` whose statements ``body(operands)`` emits. ``unaligned`` names operands that are the caller's memory: no alignment beyond a float's."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        pointers = [T.arg(n, T.ptr(dtype)) for n, dtype in OPERANDS]  # all arguments come before any buffer
        buffers = {n: T.decl_buffer((_UNBOUNDED,), dtype, data=p, align=4 if n in unaligned else 0) for (n, dtype), p in zip(OPERANDS, pointers, strict=True)}
        body(SimpleNamespace(**buffers))
    return builder.get()


def splat(value: float, lanes: int) -> Any:
    """A float constant in every lane."""
    return T.broadcast(T.float32(value), lanes) if lanes > 1 else T.float32(value)


def at(offset: Any, lanes: int) -> Any:
    """Index of ``lanes`` consecutive floats from ``offset``."""
    return T.ramp(offset, 1, lanes) if lanes > 1 else offset


def store(buffer: Any, offset: Any, value: Any, lanes: int) -> None:
    """``buffer[offset : offset + lanes] = value``."""
    T.buffer_store(buffer, value, [at(offset, lanes)])


def widths(count: int, choices: tuple[int, ...]) -> list[tuple[int, int]]:
    """``count`` floats as (start, lanes) of vectors, widest first, single floats for what remains: 27 with (16, 8) -> 16, 8, 1, 1, 1."""
    found, start = [], 0
    for lanes in (*choices, 1):
        while count - start >= lanes:
            found.append((start, lanes))
            start += lanes
    return found


def fill(buffer: Any, start: Any, count: int, value: float, choices: tuple[int, ...]) -> None:
    """Set ``count`` floats from ``start`` to ``value``: a loop of the widest vectors and a tail."""
    lanes = choices[0]
    if count >= 2 * lanes:
        with T.serial(0, count // lanes) as i:
            store(buffer, start + i * lanes, splat(value, lanes), lanes)
        start, count = start + count // lanes * lanes, count % lanes
    for offset, width in widths(count, choices):
        store(buffer, start + offset, splat(value, width), width)


def zero_frame(y: Any, layout: Layout, choices: tuple[int, ...]) -> None:
    """Zero the frame of pixels around a pixel-major Value: padding that its readers rely on."""
    if not any(layout.border):
        return
    top, left, bottom, right = layout.border
    inner, between = layout.shape[3] * layout.pitch, (right + left) * layout.pitch
    height, last = layout.shape[2], (right + bottom * layout.cols) * layout.pitch
    with T.serial(0, layout.shape[0]) as image:
        start = T.Bind(image * layout.image)
        fill(y, start, layout.origin, 0.0, choices)
        if between and height > 1:
            with T.serial(0, height - 1) as row:
                fill(y, start + (layout.origin + inner) + row * layout.row, between, 0.0, choices)
        fill(y, start + (layout.origin + (height - 1) * layout.row + inner), last, 0.0, choices)


def split(total: int, size: int) -> list[tuple[int, int, int]]:
    """``total`` positions in balanced tiles of at most ``size``: (tile size, first position, number of tiles), at most two sizes. 10 by 7 -> [(5, 0, 2)]."""
    tiles = -(-total // size)
    base, longer = divmod(total, tiles)
    found = [(base + 1, 0, longer), (base, longer * (base + 1), tiles - longer)]
    return [f for f in found if f[2]]


def blocks(channels: int, choices: tuple[int, ...], most: int) -> list[tuple[int, int, int, int]]:
    """``channels`` floats as (first, number of blocks, lanes, vectors): blocks of up to ``most`` widest vectors, then narrower ones. 72 by 4x16 -> (0, 1, 16, 4), (64, 1, 8, 1)."""
    found, start = [], 0
    for lanes in (*choices, 1):
        for vectors in range(most, 0, -1):
            count = (channels - start) // (lanes * vectors)
            if count:
                found.append((start, count, lanes, vectors))
                start += count * lanes * vectors
    return found


def _pipeline() -> tuple[Any, Any, Any]:
    @tvm.transform.module_pass(opt_level=0)
    def lower(mod: Any, _context: Any) -> Any:
        old, new = s_tir.transform, tirx.transform
        passes = [
            old.LowerInitBlock(), old.PlanAndUpdateBufferAllocationLocation(), old.ConvertBlocksToOpaque(), old.CompactBufferAllocation(), old.LowerMatchBuffer(),
            old.LowerOpaqueBlock(), new.FlattenBuffer(), new.NarrowDataType(32), new.VectorizeLoop(True), new.StorageRewrite(), new.UnrollLoop(), new.StmtSimplify(), new.RemoveNoOp(),
        ]  # fmt: skip
        return tvm.ir.transform.Sequential(passes)(mod)

    # no MakePackedAPI, so functions keep a plain C ABI; hence LowerIntrin alone at the end (LowerTVMBuiltin would ask for a device id)
    return lower, lambda: tvm.ir.transform.Sequential([tirx.transform.LowerIntrin()]), finalize_device_passes


tirx.register_tir_pipeline("npas-plain-c", _pipeline)


def write_object(function: Any, target: dict[str, object], path: Path) -> None:
    """Compile one PrimFunc to the object file ``path`` (must end in ".o")."""
    name = str(function.attrs["global_symbol"])
    tirx.build(tvm.IRModule({name: function}), target=tvm.target.Target(target), pipeline="npas-plain-c").write_to_file(str(path))
