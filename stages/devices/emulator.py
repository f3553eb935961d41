"""Runs static arm64 executables on this machine: directly on a 64-bit ARM processor, else in qemu. For what they compute only: emulated times mean nothing."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.devices import runner
from stages.devices.timing import TimingProtocol

NAMES = ("qemu-aarch64-static", "qemu-aarch64")
HINT = "To have it run here: apt-get install qemu-user-static."
_PROCESSOR = "cortex-a53"  # Armv8.0 only: a newer instruction stops the program as it would on an old phone
_SECONDS = 3600


def find() -> list[str] | None:
    """The command that runs an arm64 program: nothing on such a machine, qemu elsewhere, None where neither is."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return []
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    return [found, "-cpu", _PROCESSOR] if found else None


def outputs(
    command: Sequence[str], executable: Path, name: str, manifest: Mapping[str, Any], inputs: Sequence[np.ndarray], threads: int = 1
) -> tuple[np.ndarray, ...]:
    """What the network ``name`` inside ``executable`` computes. RunnerCrashed when it dies."""
    runner.check_inputs(str(executable), manifest, inputs)
    with tempfile.TemporaryDirectory(prefix="npas-") as folder:
        files = [f"{folder}/input{i}.raw" for i in range(len(inputs))]
        for path, values in zip(files, inputs, strict=True):
            np.ascontiguousarray(values).tofile(path)
        protocol = TimingProtocol(runs=0, threads=threads)
        words = runner.arguments([(name, manifest)], files, f"{folder}/events", f"{folder}/out", protocol, ())
        try:
            done = subprocess.run([*command, str(executable), *words], capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise runner.timed_out(TimingProtocol(timeout_seconds=_SECONDS)) from None
        events = Path(folder) / "events"
        error = runner.read_events(events.read_text(encoding="utf-8").splitlines()).error if events.exists() else ""
        runner.check_exit(done.returncode, error, done.stderr)
        return runner.read_outputs(f"{folder}/out", 0, manifest)
