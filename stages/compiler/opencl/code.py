"""Writing GPU kernels as TIR and turning them into OpenCL C: work items, the places that they compute, frames, epilogues. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder

from stages.compiler.ir import Epilogue, Layout
from stages.compiler.kernels.tir import T
from stages.compiler.opencl import activations
from stages.compiler.opencl.parameters import Memory, signature
from stages.compiler.opencl.walk import LOCAL, Strides, Types, Walk, frame_cells

_TARGET = {"kind": "opencl"}
_ON_A_DEVICE = 2  # TVM's calling convention of kernels


def function(name: str, types: Types, grid: Sequence[int], body: Callable[..., None], out: Layout | None = None) -> Any:
    """The PrimFunc ``name``: ``body(operands, *indices)`` for each place of ``grid``, and zeros in the frame of ``out``."""
    count = prod(grid)
    total = count + (frame_cells(out) if out else 0)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        o = signature(name, types)
        with T.launch_thread("blockIdx.x", -(-total // LOCAL)) as group, T.launch_thread("threadIdx.x", LOCAL) as local:
            item = T.Bind(group * LOCAL + local)
            with T.If(item < count), T.Then():
                body(o, *decoded(item, grid))
            if out is not None and total > count:
                with T.If(tirx.all(item >= count, item < total)), T.Then():
                    _zero_frame(o.y, T.Bind(item - count), out)
    return builder.get()


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
