"""From kernels and data to model.so: a table of steps in C, the runtime, kernel objects, weights by .incbin, one call of the linker. Equal inputs give equal bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.compiler.kernels.kernel import Kernel
from stages.compiler.plan import Plan
from stages.errors import NpasError

_RUNTIME = Path(__file__).parent / "runtime"
OPERANDS = ("x", "e0", "e1", "e2", "w", "b", "ptr", "idx", "y", "s")  # as in kernels/tir.py and runtime/npas_run.c
_EXPORTS = "{ global: npas_manifest; npas_workspace_bytes; npas_run; npas_profile; local: *; };\n"


def link(
    kernels: Sequence[Kernel],
    names: Sequence[str],
    objects: Mapping[str, Path],
    plan: Plan,
    blob: bytes,
    places: Sequence[Mapping[str, int]],
    manifest: str,
    path: Path,
) -> None:
    """Write the shared library ``path``. ``names`` are the kernels' symbols, ``objects`` their object files by symbol, ``places`` the offsets of their arrays in ``blob``."""
    with tempfile.TemporaryDirectory(prefix="npas-link-") as folder:
        work = Path(folder)
        rows = [_row(kernel, name, plan, where) for kernel, name, where in zip(kernels, names, places, strict=True)]
        (work / "weights.bin").write_bytes(blob or b"\0")
        (work / "manifest.json").write_text(manifest, encoding="utf-8")
        (work / "exports.map").write_text(_EXPORTS, encoding="utf-8")
        for source in _RUNTIME.glob("*.c"):
            shutil.copyfile(source, work / source.name)
        (work / "model.c").write_text(_source(sorted(set(names)), rows, plan), encoding="utf-8")
        _run_linker(work, [str(objects[name].resolve()) for name in sorted(objects)])
        shutil.move(work / "model.so", path)


def replace_manifest(library: Path, old: str, new: str, path: Path) -> None:
    """Write ``library`` to ``path`` with another manifest of the same length, so that what was measured on the library can stand in it without linking again."""
    content, before, after = library.read_bytes(), old.encode(), new.encode()
    assert len(before) == len(after) and content.count(before) == 1
    path.write_bytes(content.replace(before, after))


def _row(kernel: Kernel, name: str, plan: Plan, places: Mapping[str, int]) -> str:
    operands = dict(zip(("x", "e0", "e1", "e2"), kernel.step.inputs, strict=False)) | {"y": kernel.step.output}
    cells = []
    for operand in OPERANDS:
        if operand in places:
            cells.append(f"{{NPAS_WEIGHTS, {places[operand]}}}")
        elif operand == "s" and kernel.scratch:
            cells.append("{NPAS_SCRATCH, 0}")
        elif operand in operands:
            cells.append(_place(operands[operand], plan))
        else:
            cells.append("{NPAS_NONE, 0}")
    return f"  {{{name}, {kernel.units}, {{{', '.join(cells)}}}}},"


def _place(value: str, plan: Plan) -> str:
    if value in plan.offsets:
        return f"{{NPAS_WORKSPACE, {plan.offsets[value]}}}"
    side, _, index = value.partition(":")
    return f"{{NPAS_{side.upper()}, {index}}}"


def _embedded(symbol: str, file: str) -> str:
    return f'__asm__(".section .rodata\\n.balign 64\\n.globl {symbol}\\n{symbol}:\\n.incbin \\"{file}\\"\\n.byte 0\\n.previous\\n");'


def _source(names: Sequence[str], rows: Sequence[str], plan: Plan) -> str:
    declarations = [
        f"extern void {n}(const void *, const void *, const void *, const void *, const void *, const void *, const void *, const void *, void *, void *, int32_t, int32_t);"
        for n in names
    ]
    return "\n".join(
        [
            f"#define NPAS_MOST_THREADS {plan.threads}",
            '#include "npas_run.c"',
            *declarations,
            "const npas_step npas_steps[] = {",
            *rows,
            "};",
            f"const unsigned npas_step_count = {len(rows)};",
            _embedded("npas_weights", "weights.bin"),
            _embedded("npas_manifest_text", "manifest.json"),
            "extern const char npas_manifest_text[];",
            "const char *npas_manifest(void) { return npas_manifest_text; }",
            f"const size_t npas_scratch_place = {plan.size}, npas_scratch_bytes = {plan.scratch};",
            f"size_t npas_workspace_bytes(void) {{ return {max(plan.total, 64)}; }}",
            "",
        ]
    )


def linker() -> list[str]:
    """The C compiler that links: cc, or the one of the ziglang package."""
    found = shutil.which("cc")
    return [found] if found else [sys.executable, "-m", "ziglang", "cc"]


def _run_linker(work: Path, objects: Sequence[str]) -> None:
    flags = ["-O1", "-fPIC", "-fvisibility=default", "-shared", "-pthread", "-s", "-Wl,--build-id=none", "-Wl,--version-script=exports.map"]
    done = subprocess.run([*linker(), *flags, "model.c", *objects, "-o", "model.so"], cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise NpasError(
            f"The linker '{' '.join(linker())}' failed: {lines[-1] if lines else 'no message'}", "Install a C compiler (cc), or the ziglang package."
        )
