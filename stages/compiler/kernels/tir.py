"""Helpers for writing kernels as TIR: the common signature, loops over vectors, zeroed borders, and the build to an object file with plain C ABI. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.compilation_pipeline import finalize_device_passes

from stages.compiler.ir import Layout
from stages.compiler.kernels.packing import LINE
from stages.compiler.kernels.units import outer
from stages.compiler.target import Target

# Every kernel has this C signature and then (int32 lo, int32 hi), the range of units to do; operands it doesn't use are null.
# x: input; e0..e2: further activations; w, b: packed weights, bias; ptr, idx: sparsity; y: output; s: scratch of the thread.
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
    ("s", "float32"),
)
AHEAD = 1024  # floats: a page, which is how far the processor's own prefetcher looks
FIRST_LEVEL, SECOND_LEVEL = 3, 2  # of caches, as LLVM counts them
_FUSED = {
    lanes: f"""define <{lanes} x float> @npas_multiply_add{lanes}(<{lanes} x float> %a, <{lanes} x float> %b, <{lanes} x float> %total) {{
  %sum = tail call <{lanes} x float> asm "vfmadd231ps $2, $1, $0", "=x,x,x,0"(<{lanes} x float> %a, <{lanes} x float> %b, <{lanes} x float> %total)
  ret <{lanes} x float> %sum
}}
"""
    for lanes in (4, 8)
}
_UNBOUNDED = 1 << 30  # the buffers' sizes are the planner's concern


def function(name: str, body: Callable[[SimpleNamespace], None], unaligned: tuple[str, ...] = (), multiplies: Target | None = None) -> Any:
    """The PrimFunc ``name`` whose statements ``body(operands)`` emits; ``operands.lo`` and ``.hi`` bound the units to do.

    ``unaligned`` names operands that are the caller's memory: no alignment beyond a float's. ``multiplies``: the target of its ``multiply_add``s, if there are any.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        pointers = [T.arg(n, T.ptr(dtype)) for n, dtype in OPERANDS]  # all arguments come before any buffer
        lo, hi = (T.arg(n, T.int32()) for n in ("lo", "hi"))
        buffers = {n: T.decl_buffer((_UNBOUNDED,), dtype, data=p, align=4 if n in unaligned else 0) for (n, dtype), p in zip(OPERANDS, pointers, strict=True)}
        fused = multiplies is not None and multiplies.isa == "avx2"
        with T.attr(tirx.IntImm("int32", 0), "pragma_import_llvm", "".join(_FUSED.values())) if fused else nullcontext():
            body(SimpleNamespace(**buffers, lo=lo, hi=hi))
    return builder.get()


def nest(o: Any, total: int, dims: Sequence[int], body: Callable[..., None]) -> None:
    """The loops ``dims`` around ``body(*indices)``, as far as they belong to the call's share lo..hi of the kernel's ``total`` units (see units.py)."""
    flat = outer(dims)
    count = prod(dims[:flat])
    if count == total:
        begin, end = o.lo, o.hi
    else:
        begin, end = T.Bind(tirx.truncdiv(o.lo * count, total)), T.Bind(tirx.truncdiv(o.hi * count, total))
    with T.serial(begin, end) as unit:
        _inner(list(dims[flat:]), _decoded(unit, dims[:flat]), body)


def overlap(o: Any, first: int, count: int) -> tuple[Any, Any]:
    """(begin, end) of the call's share lo..hi of the units among ``count`` that come one after another, ``first`` units behind the kernel's first."""
    return tuple(T.Bind(tirx.max(0, tirx.min(count, bound - first))) for bound in (o.lo, o.hi))


def pick(index: Any, values: Sequence[int]) -> Any:
    """``values[index]`` of constants, at run time only where they differ."""
    if len(set(values)) == 1:
        return values[0]
    found: Any = T.int32(values[-1])
    for number, value in reversed(list(enumerate(values[:-1]))):
        found = tirx.Select(index == number, T.int32(value), found)
    return T.Bind(found)


def _decoded(unit: Any, dims: Sequence[int]) -> list[Any]:
    """The loop indices of a flattened unit, outermost first; loops of one round cost nothing."""
    found: list[Any] = []
    rest = prod(dims)
    for index, extent in enumerate(dims):
        rest //= extent
        if extent == 1:
            found.append(0)
        elif rest == 1 and index == 0:
            found.append(unit)
        else:
            value = tirx.truncdiv(unit, rest) if rest > 1 else unit
            found.append(T.Bind(value if all(d == 1 for d in dims[:index]) else tirx.truncmod(value, extent)))
    return found


def _inner(dims: list[int], indices: list[Any], body: Callable[..., None]) -> None:
    if not dims:
        body(*indices)
        return
    with T.serial(0, dims[0]) as index:
        _inner(dims[1:], [*indices, index], body)


def multiply_add(total: Any, a: Any, b: Any, lanes: int, target: Target, uses: int) -> Any:
    """``total + a * b`` of vectors, where the factor that is used less often is used in ``uses`` of a loop's multiply-adds.

    AVX2's instruction overwrites one of its operands. If a factor isn't needed afterwards, LLVM lets it be that one: then sums move from register to register, and through the stack, in every round of a
    loop. So the form that overwrites the sum is asked for by name. Measured, Zen 3: tiles of 13 pixels and 8 filters 66 -> 82 % of the peak, which is what two loads a cycle allow.
    """
    if uses > 1 or target.isa != "avx2" or lanes not in _FUSED:
        return total + a * b
    return T.call_pure_extern(f"float32x{lanes}", f"npas_multiply_add{lanes}", a, b, total)


def splat(value: float, lanes: int) -> Any:
    """A float constant in every lane."""
    return T.broadcast(T.float32(value), lanes) if lanes > 1 else T.float32(value)


def spread(value: Any, lanes: int) -> Any:
    """A number computed at run time in every lane."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def at(offset: Any, lanes: int) -> Any:
    """Index of ``lanes`` consecutive floats from ``offset``."""
    return T.ramp(offset, 1, lanes) if lanes > 1 else offset


def store(buffer: Any, offset: Any, value: Any, lanes: int) -> None:
    """``buffer[offset : offset + lanes] = value``."""
    T.buffer_store(buffer, value, [at(offset, lanes)])


def fetch(buffer: Any, offset: Any, level: int) -> None:
    """Ask for the cache line of the float ``offset``, to read it from the cache of ``level`` later; beyond the buffer's end too, where asking does no harm."""
    _ask(buffer, offset, level, 0)


def claim(buffer: Any, offset: Any) -> None:
    """Ask for the cache line of the float ``offset``, to write it later; beyond the buffer's end too."""
    _ask(buffer, offset, FIRST_LEVEL, 1)


def _ask(buffer: Any, offset: Any, level: int, writing: int) -> None:
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(buffer[offset]), *(tirx.IntImm("int32", n) for n in (writing, level, 1))))


def fetch_ahead(buffer: Any, offset: Any, count: int) -> None:
    """Ask for the cache lines of the ``count`` floats that a stream reaches AHEAD floats after ``offset``."""
    for line in range(0, count, LINE):
        fetch(buffer, offset + (AHEAD + line), FIRST_LEVEL)


def fetch_lines(buffer: Any, offset: Any, count: int) -> None:
    """Ask for the ``count`` floats from ``offset`` on, to read them from the first-level cache: the line of the last one, and of each that is a multiple of a line's length before it."""
    start = T.Bind(offset)
    for place in range(count - 1, -1, -LINE):
        fetch(buffer, start + place, FIRST_LEVEL)


def fetch_evenly(buffer: Any, offset: Any, k: Any, pace: int) -> None:
    """Ask, in round ``k`` of a loop, for the lines of the ``pace`` floats that are its share of what begins at ``offset`` and is needed after the loop: the second-level cache has room for it."""
    for line in range(0, pace, LINE):
        fetch(buffer, offset + (k * pace + line), SECOND_LEVEL)


def fetch_share(buffer: Any, offset: Any, count: Any, number: Any, of: int) -> None:
    """Ask at once for the lines of share ``number`` of ``of`` of the ``count`` floats that begin at ``offset``: the second-level cache has room for all."""
    lines = T.Bind(tirx.truncdiv(count + (LINE * of - 1), LINE * of))
    first = T.Bind(offset + number * lines * LINE)
    with T.serial(0, lines) as line:
        fetch(buffer, first + line * LINE, SECOND_LEVEL)


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


def zero_frame(o: Any, layout: Layout, choices: tuple[int, ...]) -> None:
    """Zero the frame of pixels around the pixel-major output: padding that its readers rely on. The call that begins at unit 0 does it."""
    if not any(layout.border):
        return
    with T.If(o.lo == 0), T.Then():
        _zero_frame(o.y, layout, choices)


def _zero_frame(y: Any, layout: Layout, choices: tuple[int, ...]) -> None:
    top, left, bottom, right = layout.border
    height, behind = layout.shape[2], layout.origin + layout.shape[3] * layout.pitch
    with T.serial(0, layout.shape[0]) as image:
        start = T.Bind(image * layout.image)
        _zero_pixels(y, start, top * layout.cols + left, layout, choices)
        if left + right and height > 1:
            with T.serial(0, height - 1) as row:
                _zero_pixels(y, start + behind + row * layout.row, left + right, layout, choices)
        _zero_pixels(y, start + (behind + (height - 1) * layout.row), right + bottom * layout.cols, layout, choices)


def _zero_pixels(y: Any, start: Any, pixels: int, layout: Layout, choices: tuple[int, ...]) -> None:
    """Zero the Value's own floats of consecutive pixels: others may lie beside it."""
    if layout.width == layout.pitch:
        fill(y, start, pixels * layout.pitch, 0.0, choices)
    else:
        with T.serial(0, pixels) as pixel:
            fill(y, start + pixel * layout.pitch, layout.width, 0.0, choices)


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
