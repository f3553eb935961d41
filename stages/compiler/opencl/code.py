"""Writing GPU kernels as TIR and turning them into OpenCL C: parameters, work items, loads and stores of either storage type, frames. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.tir import T, splat
from stages.compiler.opencl import activations
from stages.compiler.opencl.walk import LOCAL, Strides, Types, Walk, frame_cells

PRELUDE = """\
float4 npas_load4(__global const float *p, int i) { return vload4(0, p + i); }
void npas_store4(__global float *p, int i, float4 v) { vstore4(v, 0, p + i); }
float npas_load_half(__global const ushort *p, int i) { return vload_half(i, (__global const half *)p); }
void npas_store_half(__global ushort *p, int i, float v) { vstore_half(v, i, (__global half *)p); }
float4 npas_load_half4(__global const ushort *p, int i) { return vload_half4(0, (__global const half *)p + i); }
void npas_store_half4(__global ushort *p, int i, float4 v) { vstore_half4(v, 0, (__global half *)p + i); }
"""
_TARGET = {"kind": "opencl"}
_ON_A_DEVICE = 2  # TVM's calling convention of kernels
_UNBOUNDED = 1 << 30  # the buffers' sizes are the planner's concern
_PARAMETER = {"float32": "float32", "float16": "uint16", "int32": "int32"}  # halves as bits: OpenCL loads and stores them everywhere, but only some devices compute with them


@dataclass(frozen=True)
class Memory:
    """A parameter of a kernel: loads give float32 whatever is stored."""

    buffer: Any
    pointer: Any
    stored: str

    def load(self, offset: Any, lanes: int = 1) -> Any:
        """``lanes`` (1 or 4) consecutive numbers."""
        if lanes == 1:
            return self.buffer[offset] if self.stored != "float16" else T.call_extern("float32", "npas_load_half", self.pointer, offset)
        name = "npas_load_half4" if self.stored == "float16" else "npas_load4"
        return T.call_extern("float32x4", name, self.pointer, offset)

    def store(self, offset: Any, value: Any, lanes: int = 1) -> None:
        """Store ``lanes`` consecutive numbers."""
        if lanes == 1 and self.stored != "float16":
            T.buffer_store(self.buffer, value, [offset])
            return
        name = ("npas_store_half" if self.stored == "float16" else "npas_store") + ("4" if lanes > 1 else "")
        T.evaluate(T.call_extern("void", name, self.pointer, offset, value))


def function(name: str, types: Types, grid: Sequence[int], body: Callable[..., None], out: Layout | None = None) -> Any:
    """The PrimFunc ``name``: ``body(operands, *indices)`` for each place of ``grid``, and zeros in the frame of ``out``."""
    count = prod(grid)
    total = count + (frame_cells(out) if out else 0)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        o = _signature(name, types)
        with T.launch_thread("blockIdx.x", -(-total // LOCAL)) as group, T.launch_thread("threadIdx.x", LOCAL) as local:
            item = T.Bind(group * LOCAL + local)
            with T.If(item < count), T.Then():
                body(o, *decoded(item, grid))
            if out is not None and total > count:
                with T.If(tirx.all(item >= count, item < total)), T.Then():
                    _zero_frame(o.y, T.Bind(item - count), out)
    return builder.get()


def _signature(name: str, types: Types) -> SimpleNamespace:
    """The parameters of the kernel that begins here."""
    T.func_name(name)
    T.func_attr({"global_symbol": name, "tirx.noalias": True})
    pointers = {n: T.arg(n, T.ptr(_PARAMETER[kind], "global")) for n, kind in types}  # all arguments come before any buffer
    return SimpleNamespace(**{n: Memory(T.decl_buffer((_UNBOUNDED,), _PARAMETER[kind], data=pointers[n]), pointers[n], kind) for n, kind in types})


def group_function(name: str, types: Types, grid: Sequence[int], body: Callable[..., None]) -> Any:
    """The PrimFunc ``name`` in which a group of LOCAL work items does each place of ``grid`` together: ``body(operands, number within the group, *indices)``."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        o = _signature(name, types)
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


def decoded(item: Any, grid: Sequence[int]) -> list[Any]:
    """The indices of a flat work item, the last one fastest."""
    found: list[Any] = []
    for extent in reversed(grid):
        if extent == 1:
            found.append(0)
        elif prod(grid[: len(grid) - len(found) - 1]) == 1:
            found.append(item)
        else:
            found.append(T.Bind(tirx.truncmod(item, extent)))
            item = T.Bind(tirx.truncdiv(item, extent))
    return found[::-1]


def _zero_frame(y: Memory, item: Any, out: Layout) -> None:
    """Zero the ``item``-th pixel of all frames: rows above, rows below, then the columns beside the image."""
    top, left, bottom, right = out.border
    plane, cell = decoded(item, (out.shape[0] * out.shape[1], out.rows * out.cols - out.shape[2] * out.shape[3]))
    above, rows, beside = top * out.cols, (top + bottom) * out.cols, max(left + right, 1)
    side = cell - rows
    row, col = tirx.truncdiv(side, beside), tirx.truncmod(side, beside)
    column = tirx.Select(col < left, col, col + out.shape[3])
    place = tirx.Select(cell < above, cell, tirx.Select(cell < rows, cell + out.shape[2] * out.cols, (row + top) * out.cols + column))
    y.store(plane * out.channel + T.Bind(place), T.float32(0))


def first_pixel(walk: Walk, tile: Any) -> Any:
    """The column at which a work item's pixels begin."""
    start, cols = tile * walk.pixels, walk.dims[2]
    return start if cols % walk.pixels == 0 else T.Bind(tirx.min(start, cols - walk.pixels))


def at(strides: Strides, n: Any, c: Any, row: Any, col: Any) -> Any:
    """Offset of a pixel."""
    return strides.origin + n * strides.image + c * strides.channel + row * strides.row + col * strides.pixel


def finish(o: Any, value: Any, items: Epilogue, walk: Walk, place: tuple[Any, Any, Any, Any], lanes: int) -> None:
    """Apply the epilogue to ``lanes`` neighbouring results at ``place`` (image, channel, row, column), and store them."""
    operands = [getattr(o, f"e{k}") for k in range(len(walk.extras))]

    def operand(k: int) -> Any:
        strides = walk.extras[k]
        offset = at(strides, *place)
        return _spread(operands[k].load(offset), lanes) if strides.one else T.Bind(operands[k].load(offset, lanes))

    def channelwise() -> tuple[Any, Any]:
        return _spread(o.w.load(place[1]), lanes), _spread(o.b.load(place[1]), lanes)

    o.y.store(at(walk.y, *place), activations.apply(items, value, lanes, operand, channelwise), lanes)


def _spread(value: Any, lanes: int) -> Any:
    return T.broadcast(T.Bind(value), lanes) if lanes > 1 else T.Bind(value)


def accumulators(count: int, lanes: int) -> Any:
    """``count`` vectors of a work item's own."""
    return T.alloc_buffer((count,), "float32" if lanes == 1 else f"float32x{lanes}", scope="local")


def source(function: Any) -> str:
    """A kernel's OpenCL C, which calls what stands in PRELUDE."""
    target = tvm.target.Target(_TARGET)
    name = str(function.attrs["global_symbol"])
    module = tvm.IRModule({name: function.with_attr({"target": target, "calling_conv": _ON_A_DEVICE, "tirx.is_global_func": True})})
    old, new = s_tir.transform, tirx.transform
    passes = [
        old.LowerInitBlock(), old.PlanAndUpdateBufferAllocationLocation(), old.ConvertBlocksToOpaque(), old.CompactBufferAllocation(), old.LowerMatchBuffer(), old.LowerOpaqueBlock(),
        new.FlattenBuffer(), new.NarrowDataType(32), new.VectorizeLoop(True), new.StorageRewrite(), new.UnrollLoop(), new.RemoveNoOp(), new.LowerIntrin(),
    ]  # fmt: skip; no StmtSimplify, which would write bound values out wherever they are used
    with target:
        lowered = tvm.ir.transform.Sequential(passes)(module)
    return str(tvm.get_global_func("target.build.opencl")(lowered, target).inspect_source())


__all__ = ["Memory", "T", "accumulators", "at", "decoded", "finish", "first_pixel", "function", "source", "splat", "tirx"]
