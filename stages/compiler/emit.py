"""From kernels and data to one network's C source: a table of steps, the runtime, weights and manifest by .incbin; and its build to a shared library for this machine. Equal inputs give equal bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stages.compiler import toolchain
from stages.compiler.kernels.kernel import Kernel
from stages.compiler.plan import Plan

EXPORTED = ("npas_manifest", "npas_workspace_bytes", "npas_run", "npas_profile")  # the C interface, see runtime/npas_run.c
_PRIVATE = ("npas_steps", "npas_step_count", "npas_weights", "npas_manifest_text", "npas_scratch_place", "npas_scratch_bytes")
_RUNTIME = Path(__file__).parent / "runtime"
OPERANDS = ("x", "e0", "e1", "e2", "w", "b", "ptr", "idx", "y", "s")  # as in kernels/tir.py and runtime/npas_run.c
_LIBRARY_FLAGS = ("-O1", "-fPIC", "-fvisibility=default", "-shared", "-pthread", "-s", "-Wl,--build-id=none", "-Wl,--version-script=exports.map")


@dataclass(frozen=True)
class Parts:
    """A network before the linker: rows of its table of steps, the kernels' symbols and object files by symbol, weights, manifest, and the workspace's plan."""

    rows: tuple[str, ...]
    objects: Mapping[str, Path]
    blob: bytes
    manifest: str
    plan: Plan

    def with_manifest(self, manifest: str) -> Parts:
        """The same network with another manifest."""
        return replace(self, manifest=manifest)

    def write(self, folder: Path, prefix: str = "") -> list[str]:
        """Write model.c and what it includes into ``folder``; returns the object files that belong to it. With ``prefix`` every global name of the network begins with it."""
        (folder / "weights.bin").write_bytes(self.blob or b"\0")
        (folder / "manifest.json").write_text(self.manifest, encoding="utf-8")
        (folder / "exports.map").write_text(f"{{ global: {'; '.join(EXPORTED)}; local: *; }};\n", encoding="utf-8")
        for source in _RUNTIME.glob("*.c"):
            shutil.copyfile(source, folder / source.name)
        (folder / "model.c").write_text(self._source(prefix), encoding="utf-8")
        return [str(self.objects[name].resolve()) for name in sorted(self.objects)]

    def _source(self, prefix: str) -> str:
        declarations = [
            f"extern void {n}(const void *, const void *, const void *, const void *, const void *, const void *, const void *, const void *, void *, void *, int32_t, int32_t);"
            for n in sorted(self.objects)
        ]
        return "\n".join(
            [
                *(f"#define {name} {prefix}{name}" for name in (*EXPORTED, *_PRIVATE) if prefix),
                f"#define NPAS_MOST_THREADS {self.plan.threads}",
                '#include "npas_run.c"',
                *declarations,
                "const npas_step npas_steps[] = {",
                *self.rows,
                "};",
                f"const unsigned npas_step_count = {len(self.rows)};",
                _embedded(f"{prefix}npas_weights", "weights.bin"),
                _embedded(f"{prefix}npas_manifest_text", "manifest.json"),
                "extern const char npas_manifest_text[];",
                "const char *npas_manifest(void) { return npas_manifest_text; }",
                f"const size_t npas_scratch_place = {self.plan.size}, npas_scratch_bytes = {self.plan.scratch};",
                f"size_t npas_workspace_bytes(void) {{ return {max(self.plan.total, 64)}; }}",
                "",
            ]
        )


def parts(
    kernels: Sequence[Kernel], names: Sequence[str], objects: Mapping[str, Path], plan: Plan, blob: bytes, places: Sequence[Mapping[str, int]], manifest: str
) -> Parts:
    """The network made of ``kernels``. ``names`` are their symbols, ``objects`` the object files by symbol, ``places`` the offsets of their arrays in ``blob``."""
    rows = tuple(_row(kernel, name, plan, where) for kernel, name, where in zip(kernels, names, places, strict=True))
    return Parts(rows, objects, blob, manifest, plan)


def link_library(network: Parts, compiler: Sequence[str], path: Path) -> None:
    """Write the shared library ``path``, which exports the C interface; ``compiler`` decides for which system."""
    with tempfile.TemporaryDirectory(prefix="npas-link-") as folder:
        work = Path(folder)
        objects = network.write(work)
        toolchain.run([*compiler, *_LIBRARY_FLAGS, "model.c", *objects, "-o", "model.so"], work)
        shutil.move(work / "model.so", path)


def replace_manifest(binary: Path, old: str, new: str, path: Path) -> None:
    """Write ``binary`` to ``path`` with another manifest of the same length, so that what was measured on it can stand in it without linking again."""
    content, before, after = binary.read_bytes(), old.encode(), new.encode()
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
