"""A network compiled for GPUs: OpenCL C, a plan of launches, weights, and the program that runs them. Imports numpy only, no TVM and no torch."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import write_atomic
from stages.compiler.model import CompiledModel
from stages.compiler.opencl import runner

RUNS, WARMUP = 20, 3
FILES = ("kernels.cl", "plan.json", "weights.bin")  # of a network's folder


@dataclass(frozen=True)
class Network:
    """What is run: the kernels' source, the launch plan (generate.py) and the blob of weights."""

    source: str
    plan: Mapping[str, Any]
    blob: bytes

    def write(self, folder: Path) -> None:
        """Write FILES into ``folder``, each atomically."""
        contents = (self.source.encode(), (json.dumps(self.plan) + "\n").encode(), self.blob)
        for name, content in zip(FILES, contents, strict=True):
            write_atomic(folder / name, partial(_write, content))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


class OpenclModel(CompiledModel):
    """A network as OpenCL kernels for devices of ``manifest["target"]``. Calls run it on this machine's OpenCL: right anywhere, but only a phone's own runs tell its speed."""

    def __init__(self, network: Network, manifest: Mapping[str, Any]):
        self.network, self.manifest = network, dict(manifest)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The network's outputs. UsageError for wrong shapes, DeviceNotFound where this machine has no OpenCL device."""
        return self.run(self._checked(inputs)).outputs

    def run(self, inputs: list[np.ndarray], runs: int = 0, warmup: int = 0, profile: int = 0) -> runner.Run:
        """Outputs, the device's facts and times on this machine's OpenCL; without ``inputs`` they are zeros."""
        with tempfile.TemporaryDirectory(prefix="npas-opencl-") as folder:
            self.network.write(Path(folder))
            return runner.run(Path(folder), [o["shape"] for o in self.manifest["outputs"]], inputs, runs, warmup, profile)

    def profile(self, runs: int = 20, inputs: tuple[np.ndarray, ...] = ()) -> list[tuple[str, str, float]]:
        """(layer, kernel, mean milliseconds) of each launch, by the device's own clock."""
        return list(self.run(self._checked(inputs) if inputs else [], profile=runs).launches)

    def measured(self, error: tuple[float, float], device: Mapping[str, Any]) -> OpenclModel:
        """The same network with its error, and on which device that was found, in the manifest."""
        found = {"max_abs_err": float(f"{error[0]:.3g}"), "max_abs_output": float(f"{error[1]:.6g}"), "checked_on": dict(device)}
        return OpenclModel(self.network, self.manifest | found)

    def save(self, path: str | Path) -> Path:
        """Write the folder ``path``: FILES, manifest.json, and the runner where it can be built for the target."""
        folder = Path(path)
        self.network.write(folder)
        write_atomic(folder / "manifest.json", partial(_write, (json.dumps(self.manifest, indent=1) + "\n").encode()))
        save_runner(self.manifest["target"]["name"], folder / "runner")
        return folder


def time(models: Mapping[str, OpenclModel]) -> dict[str, Any]:
    """Median milliseconds of each network on this machine's OpenCL device, and which device that is."""
    found = {name: model.run([], RUNS, WARMUP) for name, model in models.items()}
    device = next(iter(found.values())).device
    platform = "PoCL" if "PoCL" in device["version"] else device["platform"]
    return {"platform": platform, "device": device["device"], "gpu": device["gpu"], "ms": {name: round(statistics.median(run.samples_ms), 4) for name, run in found.items()}}


def describe(times: Mapping[str, Any]) -> str:
    """A sentence about ``time``'s result, which says what kind of device it was."""
    kind = "this machine's GPU, not a phone's" if times["gpu"] else "a CPU: not a phone's GPU"
    return f"{', '.join(f'{name} {ms:g} ms' for name, ms in times['ms'].items())} on {times['platform']}, {times['device']} ({kind})"


def save_runner(target: str, path: Path) -> bool:
    """Write the runner for ``target`` to ``path``; False where it takes the NDK, which isn't there: then ``path``.c is its source."""
    program = runner.build(target)
    where = path if program else path.with_suffix(".c")
    write_atomic(where, partial(_write, (program or runner.SOURCE).read_bytes()))
    if program:
        where.chmod(where.stat().st_mode | 0o111)
    return program is not None

