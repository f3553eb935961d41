"""The compiler's second backend, for phone GPUs: OpenCL C instead of object code, from the same lowered network. Public: compile_opencl, OpenclModel."""

from stages.compiler.opencl.model import OpenclModel

__all__ = ["OpenclModel", "compile_opencl"]


def __getattr__(name: str) -> object:
    if name == "compile_opencl":  # torch is imported only by those who compile
        from stages.compiler.opencl.api import compile_opencl

        return compile_opencl
    raise AttributeError(name)
