"""Compiled kernels, kept from one compilation to the next: a kernel depends on shapes and tile only, so a candidate with another mask or rate compiles nothing. Imports TVM only on a miss."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from stages.artifacts import cache_dir
from stages.compiler import select
from stages.compiler.kernels.kernel import Kernel
from stages.compiler.target import Target


def symbol(kernel: Kernel, target: Target) -> str:
    """The kernel's name in the object file: a digest of all that its code depends on."""
    key = repr((kernel.rule, kernel.spec, target, _versions()))
    return f"k_{kernel.rule}_{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def tvm_version() -> str:
    """The code generator's version, without importing it."""
    return version("apache-tvm")


@cache
def _versions() -> tuple[str, ...]:
    """What else decides the generated code: TVM and our own generators."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in [*sorted((here / "kernels").glob("*.py")), here / "ir.py", here / "tiles.py"]:
        digest.update(path.read_bytes())
    return (version("apache-tvm"), version("apache-tvm-ffi"), digest.hexdigest())


def objects(kernels: Sequence[Kernel], target: Target) -> tuple[list[str], dict[str, Path], int]:
    """(symbol of each kernel, object file of each distinct symbol, how many had to be compiled)."""
    folder = cache_dir("kernels")
    names = [symbol(kernel, target) for kernel in kernels]
    distinct = dict(zip(names, kernels, strict=True))
    missing = {name: kernel for name, kernel in distinct.items() if not (folder / f"{name}.o").exists()}
    for name, kernel in sorted(missing.items()):
        _compile(kernel, name, target, folder)
    return names, {name: folder / f"{name}.o" for name in sorted(distinct)}, len(missing)


def _compile(kernel: Kernel, name: str, target: Target, folder: Path) -> None:
    """Compile into a file of our own, then move it into place: another process may do the same at this moment."""
    from stages.compiler.kernels import tir

    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".o", dir=folder)
    os.close(handle)
    try:
        tir.write_object(select.emit(kernel, name, target), target.tvm(), Path(temporary))
        os.replace(temporary, folder / f"{name}.o")
    finally:
        Path(temporary).unlink(missing_ok=True)
