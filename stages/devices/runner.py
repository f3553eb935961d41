"""The runner program from Python's side: build it once, speak its arguments, read its events. Knows no transport: host.py starts it here, a phone's device will elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import cache_dir
from stages.devices.correct import Expected, Outputs
from stages.devices.timing import Conditions, Measurement, TimingProtocol, judge
from stages.errors import ArtifactError, NpasError, RunnerCrashed, UsageError, WrongOutput

SOURCE = Path(__file__).with_name("runner.c")
SILENT, WRONG = 124, 4  # exit codes of runner.c
_UNKNOWN = Conditions()


def find_cc() -> list[str]:
    """The C compiler's command: ``cc`` where it is installed, else the one inside the ziglang package."""
    cc = shutil.which("cc")
    return [cc] if cc else [sys.executable, "-m", "ziglang", "cc"]


def build_runner() -> Path:
    """The compiled runner, from the cache when source and compiler are unchanged. NpasError with the compiler's words when it can't be built."""
    cc = find_cc()
    key = hashlib.sha256(SOURCE.read_bytes() + _output([*cc, "--version"]).encode()).hexdigest()[:16]
    path = cache_dir("runner") / f"runner-{key}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # moved into place whole: another process may be looking for it
            _output([*cc, "-O2", "-o", f"{folder}/runner", str(SOURCE), "-ldl"])
            os.replace(f"{folder}/runner", path)
    return path


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise NpasError(f"There is no C compiler ({command[0]}).", "Install cc (Debian: apt-get install gcc), or 'pip install ziglang'.") from None
    except subprocess.CalledProcessError as error:
        raise NpasError(f"The runner can't be built: {' '.join(error.stderr.split())[-400:]}.", "Check the C compiler with 'cc --version'.") from None
    return done.stdout


def arguments(models: Sequence[tuple[str, Mapping[str, Any]]], inputs: Sequence[str], events: str, save: str, protocol: TimingProtocol, cpus: Sequence[int]) -> list[str]:
    """The runner's arguments for ``models`` (path on the device, manifest) and ``inputs`` (paths on the device); without runs it only computes outputs."""
    command = ["--events", events, "--save", save, "--cpus", ",".join(map(str, cpus)), "--threads", str(protocol.threads)]
    command += ["--warmup", str(protocol.warmup), "--warmup-seconds", str(protocol.warmup_seconds), "--settle", str(protocol.settle)]
    for path, manifest in models:
        sizes = ",".join(str(4 * int(np.prod(output["shape"]))) for output in manifest["outputs"])
        command += ["--model", path, sizes, str(len(manifest["kernels"]))]
    return command + [word for path in inputs for word in ("--input", path)]


def timing_arguments(protocol: TimingProtocol, expect: str = "", tolerance: float = 0.0) -> list[str]:
    """What makes the runner time: rounds, kernels where asked for, and before them the comparison with the files ``expect``.<model>.<output>.raw."""
    words = ["--runs", str(protocol.runs)] + (["--profile", str(protocol.profile_runs)] if protocol.profile_runs else [])
    return words + (["--expect", expect, repr(tolerance)] if expect else [])


def write_expected(expected: Expected, prefix: Path) -> None:
    """The files that ``--expect prefix`` reads."""
    for k, outputs in enumerate(expected.outputs):
        for o, values in enumerate(outputs):
            np.ascontiguousarray(values, np.float32).tofile(f"{prefix}.{k}.{o}.raw")


def check_inputs(path: str, manifest: Mapping[str, Any], inputs: Sequence[np.ndarray]) -> None:
    """UsageError unless ``inputs`` are what the network was compiled for: the C code trusts their sizes."""
    wanted = [tuple(i["shape"]) for i in manifest["inputs"]]
    given = [tuple(x.shape) for x in inputs]
    if wanted != given or any(x.dtype != np.float32 for x in inputs):
        raise UsageError(f"{path} was compiled for float32 inputs of shape {wanted}; given: {[(x.dtype.name, x.shape) for x in inputs]}.", "Compile it for this input with 'npas compile'.")


def parse_manifest(path: str, text: str) -> dict[str, Any]:
    """The manifest inside a compiled network; ArtifactError unless it can be read."""
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not {"inputs", "outputs", "kernels"} <= set(manifest):
        raise ArtifactError(f"{path} holds no readable manifest.", "Run 'npas compile' again.")
    return manifest


@dataclass
class Events:
    """The runner's JSON lines, sorted by kind. Times in ms; lists by model are in the order of the models."""

    init_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    profiles: dict[int, list[list[float]]] = field(default_factory=dict)
    pinned: list[int] = field(default_factory=list)
    clocks: dict[int, list[int]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    stable: bool = True
    silent: bool = False
    error: str = ""
    ended: bool = False

    @property
    def frequency_khz(self) -> tuple[int, ...]:
        """The clocks of all cores, core after core."""
        return tuple(khz for trace in self.clocks.values() for khz in trace)

    def per_model(self, key: str, count: int) -> tuple[tuple[float, ...], ...]:
        """Column ``key`` (ms, cpu_ms) of all rounds, for each model."""
        return tuple(tuple(r[key][k] for r in self.rounds) for k in range(count))


def read_events(lines: Iterable[str]) -> Events:
    """What the runner has reported so far. A line that was cut off by a crash is ignored, as is any event of a later version."""
    found = Events()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        kind = event.get("event")
        if kind == "loaded":
            found.init_ms.append(event["init_ms"])
        elif kind == "first":
            found.first_ms.append(event["ms"])
        elif kind == "round":
            found.rounds.append(event)
        elif kind == "profile":
            found.profiles.setdefault(event["model"], []).append(event["ms"])
        elif kind == "affinity":
            found.pinned = event["cpus"]
        elif kind == "frequency":
            found.clocks.setdefault(event["cpu"], []).append(event["khz"])
        elif kind == "check":
            found.checks.append(event)
        elif kind == "silent":
            found.silent = True
        elif kind == "stable":
            found.stable = found.stable and event["same"]
        elif kind == "error":
            found.error = event["message"]
        elif kind == "end":
            found.ended = True
    return found


def read_outputs(prefix: str, model: int, manifest: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """The arrays that the runner saved for one model; each is float32 in the manifest's shape."""
    return tuple(np.fromfile(f"{prefix}.{model}.{o}.raw", dtype=np.float32).reshape(output["shape"]) for o, output in enumerate(manifest["outputs"]))


def measurement(
    events: Events,
    outputs: Sequence[Outputs],
    manifests: Sequence[Mapping[str, Any]],
    protocol: TimingProtocol,
    cpus: Sequence[int],
    strict: bool = False,
    conditions: Conditions = _UNKNOWN,
) -> Measurement:
    """What a finished run gave, judged; ``outputs`` are those of the first run, ``cpus`` the cores that were asked for."""
    count = len(manifests)
    samples, cpu = events.per_model("ms", count), events.per_model("cpu_ms", count)
    thermal = conditions.thermal["before"], conditions.thermal["max_status"]
    valid, reasons = judge(samples, cpu, protocol.runs, cpus, events.pinned, [r["cpu"] for r in events.rounds], events.stable, strict, events.clocks, thermal)
    kernels = tuple(tuple(float(v) for v in np.median(events.profiles[k], axis=0)) for k in range(count)) if events.profiles else ()
    return Measurement(
        samples, tuple(tuple(o) for o in outputs), tuple(events.init_ms), tuple(events.first_ms), cpu, tuple(events.pinned), events.frequency_khz, valid, reasons,
        kernels, tuple(manifests), conditions,
    )  # fmt: skip


def raise_wrong(expected: Expected, found: Sequence[Outputs]) -> None:
    """The WrongOutput for outputs that the runner itself refused to time."""
    expected.check(found)
    raise WrongOutput("The runner found wrong outputs, but what it saved is right.", "Its files are damaged: delete compile/ and run 'npas compile' again.")


def check_exit(code: int, error: str, stderr: str) -> None:
    """RunnerCrashed unless the runner ended well. ``code`` is subprocess's: -11 for SIGSEGV; a shell says 139."""
    if code == 0 and not error:
        return
    if error:
        raise RunnerCrashed(f"The runner stopped: {error}.", "Compile the network again with 'npas compile'.")
    if code in _SHELL_CODES:
        raise RunnerCrashed(*_SHELL_CODES[code])
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number:
        name = signal.Signals(number).name if number in {s.value for s in signal.Signals} else f"signal {number}"
        raise RunnerCrashed(f"The runner was killed by {name} ({128 + number}).", _SIGNAL_HINTS.get(name, "Compile the network again with 'npas compile'; if it stays, please report it."))
    raise RunnerCrashed(f"The runner failed with exit code {code}: {' '.join(stderr.split()) or 'it said nothing'}.", "Delete the folder 'runner' in the cache of npas and try again.")


_SHELL_CODES = {
    126: ("The runner can't be executed there (126): no permission, or not a program for this processor.", "The folder may forbid execution, or the file is damaged: run 'npas compile' again."),
    127: ("The runner is not there (127).", "Somebody removed it meanwhile: try again."),
}
_SIGNAL_HINTS = {
    "SIGILL": "The network was compiled for another processor: run 'npas probe' and 'npas compile' on this one.",
    "SIGKILL": "Out of memory, or somebody stopped it: free some memory and try again.",
}


def timed_out(protocol: TimingProtocol) -> RunnerCrashed:
    """The error for a runner that has been silent for too long."""
    return RunnerCrashed(f"The runner said nothing for {protocol.timeout_seconds:g} s and was stopped by SIGKILL (137).", "The network hangs or the machine is overloaded: try again, or compile it again.")
