"""This machine as a device: starts the runner as a child process, pinned, one measurement at a time on a core."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import cache_dir
from stages.devices import runner
from stages.devices.clusters import choose_cores
from stages.devices.correct import Expected
from stages.devices.models import Linked, Model, existing
from stages.devices.probe import clusters, governor, host_identity
from stages.devices.timing import Conditions, Measurement, TimingProtocol
from stages.errors import UsageError

POLL_SECONDS = 0.5
DEFAULT = TimingProtocol()


class HostDevice:
    """The Device protocol on this machine."""

    target = "host"

    def probe(self) -> dict[str, Any]:
        """Who this machine is; the same every time."""
        return host_identity()

    def outputs(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol = DEFAULT) -> tuple[tuple[np.ndarray, ...], ...]:
        """What each network computes for ``inputs``; one run each, nothing timed."""
        with _session(models, inputs, protocol) as session:
            session.start()
            return session.outputs()

    def measure(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol, expected: Expected | None = None) -> Measurement:
        """Time ``models`` in interleaved rounds on the same inputs. RunnerCrashed, UsageError (inputs, cores), ArtifactError (no such model), WrongOutput before any timing."""
        with _session(models, inputs, protocol) as session:
            if expected:
                runner.write_expected(expected, session.folder / "expect")
            events = session.start(*runner.timing_arguments(protocol, str(session.folder / "expect") if expected else "", expected.tolerance if expected else 0))
            if expected and not all(check["ok"] for check in events.checks):
                runner.raise_wrong(expected, session.outputs())
            conditions = Conditions(kernel=platform.release(), governor=governor(events.pinned[0]) if events.pinned else None)
            return runner.measurement(events, session.outputs(), session.manifests, protocol, session.cpus, conditions=conditions)

    def profile(self, model: Model, inputs: Sequence[np.ndarray], runs: int, protocol: TimingProtocol) -> list[float]:
        """Median ms over ``runs`` of each entry of the manifest's kernels, in its order."""
        with _session([model], inputs, protocol) as session:
            return [float(v) for v in np.median(session.start("--profile", str(runs)).profiles[0], axis=0)]

    def manifests(self, models: Sequence[Model]) -> list[dict[str, Any]]:
        """The manifest inside each compiled network, read by the runner: a broken network can't take this process down."""
        with tempfile.TemporaryDirectory(prefix="npas-") as folder:
            return _manifests(_libraries(models), Path(folder), DEFAULT)

    def ready(self) -> None:
        """It always is."""

    def close(self) -> None:
        """Nothing is open between two questions."""


class _Session:
    """One start of the runner: its models, files and cores."""

    def __init__(self, folder: Path, models: list[Path], manifests: list[dict[str, Any]], inputs: Sequence[np.ndarray], protocol: TimingProtocol, cpus: tuple[int, ...]):
        self.folder, self.models, self.manifests, self.protocol, self.cpus = folder, models, manifests, protocol, cpus
        self.inputs = [folder / f"input{i}.raw" for i in range(len(inputs))]
        for path, values in zip(self.inputs, inputs, strict=True):
            np.ascontiguousarray(values).tofile(path)

    def start(self, *mode: str) -> runner.Events:
        pairs = [(str(path), manifest) for path, manifest in zip(self.models, self.manifests, strict=True)]
        words = runner.arguments(pairs, [str(p) for p in self.inputs], str(self.folder / "events"), str(self.folder / "out"), self.protocol, self.cpus)
        return _launch([*words, *mode], self.folder / "events", self.protocol)

    def outputs(self) -> tuple[tuple[np.ndarray, ...], ...]:
        return tuple(runner.read_outputs(str(self.folder / "out"), k, manifest) for k, manifest in enumerate(self.manifests))


@contextmanager
def _session(models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol) -> Iterator[_Session]:
    paths, cpus = _libraries(models), choose_cpus(protocol)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npas-")))
        manifests = _manifests(paths, folder, protocol)
        for path, manifest in zip(paths, manifests, strict=True):
            runner.check_inputs(str(path), manifest, inputs)
        for cpu in sorted(cpus):
            stack.enter_context(_reserved(cpu))
        yield _Session(folder, paths, manifests, inputs, protocol, cpus)


def _libraries(models: Sequence[Model]) -> list[Path]:
    if any(isinstance(model, Linked) for model in models):
        raise UsageError("An executable of another machine can't be measured here.", "Give libraries that were compiled for target 'host'.")
    return [existing(model) for model in models if not isinstance(model, Linked)]


def choose_cpus(protocol: TimingProtocol) -> tuple[int, ...]:
    """The cores to pin to: those of the protocol, or the last ones that this process may use. UsageError for cores that it may not."""
    return choose_cores(protocol.cluster, protocol.cpus, protocol.threads, clusters() if protocol.cluster else (), os.sched_getaffinity(0))


@contextmanager
def _reserved(cpu: int) -> Iterator[None]:
    """Wait for another npas that measures on this core, then keep the core until the measurement is over."""
    with open(cache_dir("runner") / f"core{cpu}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _manifests(models: Sequence[Path], folder: Path, protocol: TimingProtocol) -> list[dict[str, Any]]:
    words = ["--describe", "--events", str(folder / "events"), "--save", str(folder / "about")]
    _launch([*words, *(w for m in models for w in ("--model", str(m), "", "0"))], folder / "events", protocol)
    return [runner.parse_manifest(str(m), (folder / f"about.{k}.manifest.json").read_text(encoding="utf-8", errors="replace")) for k, m in enumerate(models)]


def _launch(words: Sequence[str], events: Path, protocol: TimingProtocol) -> runner.Events:
    """Run the runner to its end and read its events; RunnerCrashed when it fails, dies or falls silent. It never outlives this process."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen([runner.build_runner(), "--die-with-parent", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            code = _wait(process, events, protocol)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    found = runner.read_events(events.read_text(encoding="utf-8", errors="replace").splitlines() if events.exists() else [])
    if code != runner.WRONG or found.error:
        runner.check_exit(code, found.error, said)
    return found


def _wait(process: subprocess.Popen[bytes], events: Path, protocol: TimingProtocol) -> int:
    """The exit code; kills a runner whose events file has not grown for ``timeout_seconds``."""
    size, silent = -1, 0.0
    while True:
        try:
            return process.wait(timeout=min(POLL_SECONDS, protocol.timeout_seconds))
        except subprocess.TimeoutExpired:
            grown = events.stat().st_size if events.exists() else 0
            size, silent = (grown, 0.0) if grown != size else (size, silent + POLL_SECONDS)
            if silent >= protocol.timeout_seconds:
                raise runner.timed_out(protocol) from None
