"""A network compiled for a 64-bit ARM machine that isn't this one: saved as a static executable, a static library or a shared library. Imports numpy only, no TVM and no torch."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import write_atomic
from stages.compiler import emit, toolchain
from stages.compiler.model import CompiledModel
from stages.devices import emulator, runner
from stages.errors import UsageError

NAME = "model"  # of the network inside its own executable
_STATIC_FLAGS = ("-static", "-O2", "-pthread", "-fno-sanitize=undefined")


class CrossModel(CompiledModel):
    """A network for ``target`` ("android-arm64", "linux-arm64"). It has a manifest and can be saved, but not be called here."""

    def __init__(self, parts: emit.Parts, target: str):
        self.parts, self.target = parts, target
        self.manifest: dict[str, Any] = json.loads(parts.manifest)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Always a UsageError: the code is another processor's."""
        raise UsageError(
            f"This network was compiled for {self.target} and can't run in this process.", "Save it, copy it there and run it; or compile it for target 'host'."
        )

    def profile(self, runs: int = 20, inputs: tuple[np.ndarray, ...] = ()) -> list[tuple[str, str, float]]:
        """Always a UsageError: times come from the machine that it was compiled for."""
        self(*inputs)
        raise AssertionError("unreachable")

    def emulated(self, *inputs: np.ndarray, threads: int = 1) -> tuple[np.ndarray, ...] | None:
        """What the network computes, by running its static executable in qemu; None where there is no qemu. For checks: takes some fifty times as long as on a phone."""
        command = emulator.find()
        if command is None:
            return None
        with tempfile.TemporaryDirectory(prefix="npas-model-") as folder:
            program = Path(folder) / "runner"
            link_runner({NAME: self}, program)
            return emulator.outputs(command, program, NAME, self.manifest, [np.ascontiguousarray(x, np.float32) for x in inputs], threads)

    def save(self, path: str | Path) -> Path:
        """Write the network, atomically, as what the name says: NAME.so (a shared library like the host's), NAME.a (a static library, whose C interface is prefixed: NAME_npas_run), else a static executable.

        The executable is runner.c with this network as ``--model model``; it needs no library on the device. UsageError for an Android .so without the NDK.
        """
        path = Path(path)
        if path.suffix == ".so":
            return write_atomic(path, partial(emit.link_library, self.parts, library_compiler(self.target)))
        if path.suffix == ".a":
            return write_atomic(path, partial(_archive, self.parts, prefix(path.stem)))
        return write_runner({NAME: self}, path)


def notes(target: str) -> list[str]:
    """What is missing on this machine for a complete result, one sentence each with what to do about it."""
    found = []
    if emulator.find() is None:
        found.append(f"The network was compiled but not run: there is no {emulator.NAMES[0]} on this machine. {emulator.HINT}")
    if target == "android-arm64" and toolchain.ndk() is None:
        found.append("No shared library was made: ANDROID_NDK_HOME isn't set. The static executable runs without it.")
    return found


def library_compiler(target: str) -> list[str]:
    """The compiler for shared libraries of ``target``. UsageError when it takes the NDK and ANDROID_NDK_HOME isn't set."""
    if target != "android-arm64":
        return toolchain.zig(toolchain.GLIBC)
    found = toolchain.ndk()
    if found is None:
        raise UsageError(
            "A shared library for Android takes the NDK, and ANDROID_NDK_HOME isn't set.", "Set it, or use the static executable, which needs no NDK."
        )
    return found


def write_runner(networks: Mapping[str, CrossModel], path: str | Path) -> Path:
    """Write one static executable, atomically, that holds several networks and times them in turns: ``--model NAME`` chooses one. Names are C identifiers."""

    def write(temporary: Path) -> None:
        link_runner(networks, temporary)

    path = write_atomic(path, write)
    path.chmod(path.stat().st_mode | 0o111)
    return path


def link_runner(networks: Mapping[str, CrossModel], path: Path, options: Sequence[str] = ("-s",)) -> None:
    """Link the executable of ``write_runner``; ``options`` go to the linker."""
    with tempfile.TemporaryDirectory(prefix="npas-link-") as folder:
        work = Path(folder)
        found: dict[str, None] = {}
        for name, network in networks.items():
            found |= dict.fromkeys(compile_network(network.parts, prefix(name), work / name))
        (work / "models.inc").write_text("".join(f"MODEL({name})\n" for name in networks), encoding="utf-8")
        shutil.copyfile(runner.SOURCE, work / "runner.c")
        static = [*toolchain.zig(toolchain.STATIC), *_STATIC_FLAGS, *options]
        toolchain.run([*static, "-I.", '-DNPAS_STATIC="models.inc"', "runner.c", *found, "-lm", "-o", "runner"], work)
        shutil.move(work / "runner", path)


def compile_network(parts: emit.Parts, prefix: str, folder: Path) -> list[str]:
    """The object files of a network, its own one in ``folder``; a kernel that two networks share has the same path."""
    folder.mkdir()
    kernels = parts.write(folder, prefix)
    toolchain.run([*toolchain.zig(toolchain.STATIC), "-O2", "-fPIC", "-fno-sanitize=undefined", "-c", "model.c", "-o", "model.o"], folder)
    return [str(folder / "model.o"), *kernels]


def prefix(name: str) -> str:
    """What the global names of the network called ``name`` begin with."""
    return re.sub(r"\W", "_", name) + "_"


def _archive(parts: emit.Parts, prefix: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="npas-link-") as folder:
        objects = compile_network(parts, prefix, Path(folder) / "network")
        toolchain.run([*toolchain.archiver(), "rcsD", "model.a", *objects], Path(folder))
        shutil.move(f"{folder}/model.a", path)
