"""A kernel's parameters: memory that holds single or half precision and is always computed with in single. Imports TVM."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from stages.compiler.kernels.tir import T
from stages.compiler.opencl.walk import Types

PRELUDE = """\
float4 npas_load4(__global const float *p, int i) { return vload4(0, p + i); }
void npas_store4(__global float *p, int i, float4 v) { vstore4(v, 0, p + i); }
float npas_load_half(__global const ushort *p, int i) { return vload_half(i, (__global const half *)p); }
void npas_store_half(__global ushort *p, int i, float v) { vstore_half(v, i, (__global half *)p); }
float4 npas_load_half4(__global const ushort *p, int i) { return vload_half4(0, (__global const half *)p + i); }
void npas_store_half4(__global ushort *p, int i, float4 v) { vstore_half4(v, 0, (__global half *)p + i); }
"""
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


def signature(name: str, types: Types) -> SimpleNamespace:
    """The parameters of the kernel that begins here."""
    T.func_name(name)
    T.func_attr({"global_symbol": name, "tirx.noalias": True})
    pointers = {n: T.arg(n, T.ptr(_PARAMETER[kind], "global")) for n, kind in types}  # all arguments come before any buffer
    return SimpleNamespace(**{n: Memory(T.decl_buffer((_UNBOUNDED,), _PARAMETER[kind], data=pointers[n]), pointers[n], kind) for n, kind in types})
