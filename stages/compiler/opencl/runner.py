"""runner.c from Python's side: build it for a device, run a network's folder with it on this machine's OpenCL, read its events. Imports numpy only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import cache_dir
from stages.compiler import toolchain
from stages.compiler.target import HOST
from stages.errors import DeviceNotFound, RunnerCrashed

SOURCE = Path(__file__).with_name("runner.c")
HINT = "For a CPU that runs OpenCL: apt-get install pocl-opencl-icd ocl-icd-libopencl1."
_FLAGS = ("-O2", "-std=gnu11", "-s")
_NO_DEVICE = 5
_SECONDS = 600


@dataclass(frozen=True)
class Run:
    """What a run of the runner told: the device's facts, outputs, milliseconds of each timed run, and (layer, kernel, milliseconds) of each launch where it was asked to profile."""

    device: Mapping[str, Any]
    ready: Mapping[str, float]
    outputs: tuple[np.ndarray, ...]
    samples_ms: tuple[float, ...]
    launches: tuple[tuple[str, str, float], ...]


def compiler(target: str) -> list[str] | None:
    """The C compiler for ``target``; None where it takes the NDK and ANDROID_NDK_HOME isn't set. The runner opens a library at run time, so a static executable can't do."""
    if target == HOST:
        return toolchain.host()
    return toolchain.ndk() if target == "android-arm64" else toolchain.zig(toolchain.GLIBC)


def build(target: str) -> Path | None:
    """The runner for ``target``, from the cache when nothing changed; None where the NDK is missing. NpasError with the compiler's words when it can't be built."""
    command = compiler(target)
    if command is None:
        return None
    key = hashlib.sha256(SOURCE.read_bytes() + repr((command, _FLAGS)).encode()).hexdigest()[:16]
    path = cache_dir("runner") / f"opencl-{target}-{key}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            shutil.copyfile(SOURCE, Path(folder) / "runner.c")
            toolchain.run([*command, *_FLAGS, "runner.c", "-ldl", "-o", "runner"], Path(folder))
            os.replace(Path(folder) / "runner", path)
    return path


def run(network: Path, shapes: Sequence[Sequence[int]], inputs: Sequence[np.ndarray] = (), runs: int = 0, warmup: int = 0, profile: int = 0) -> Run:
    """Run the network in the folder ``network`` here; ``shapes`` of its outputs. DeviceNotFound where this machine has no OpenCL device, RunnerCrashed when the runner dies."""
    program = build(HOST)
    with tempfile.TemporaryDirectory(prefix="npas-opencl-") as folder:
        files = [f"{folder}/input{k}.raw" for k in range(len(inputs))]
        for path, values in zip(files, inputs, strict=True):
            np.ascontiguousarray(values, np.float32).tofile(path)
        command = [str(program), str(network), *(word for path in files for word in ("--input", path)), "--save", f"{folder}/out"]
        command += ["--runs", str(runs), "--warmup", str(warmup), "--profile", str(profile)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise RunnerCrashed(f"The OpenCL runner was silent for {_SECONDS} seconds.", "The OpenCL driver may hang; try another device.") from None
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        _check(done, events)
        outputs = tuple(np.fromfile(f"{folder}/out.{k}.raw", np.float32).reshape(shape) for k, shape in enumerate(shapes))
    kinds = {kind: [e for e in events if e["event"] == kind] for kind in ("device", "ready", "sample", "launch")}
    launches = tuple((e["layer"], e["kernel"], e["ms"]) for e in kinds["launch"])
    return Run(_plain(kinds["device"][0]), _plain(kinds["ready"][0]), outputs, tuple(e["ms"] for e in kinds["sample"]), launches)


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def _check(done: subprocess.CompletedProcess[str], events: Sequence[Mapping[str, Any]]) -> None:
    if not done.returncode:
        return
    words = events[-1]["message"] if events and events[-1]["event"] == "error" else (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == _NO_DEVICE:
        raise DeviceNotFound("There is no OpenCL device on this machine.", HINT)
    raise RunnerCrashed(f"The OpenCL runner ended with code {done.returncode}: {words}.", "Check the OpenCL driver, e.g. with clinfo.")
