"""A phone over adb as a device: pushes the runner, has it run detached, and brings back what it wrote. Imports this folder only; adb-shell is imported by the link."""

from __future__ import annotations

import fcntl
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import cache_dir, sha256
from stages.devices import runner
from stages.devices.adb.connection import Connection
from stages.devices.adb.facts import identity
from stages.devices.clusters import choose_cores
from stages.devices.correct import Expected
from stages.devices.job import BASE, Held, Job, check_free
from stages.devices.models import Linked, Model, existing
from stages.devices.preflight import Ready, Thermal, conditions, inspect
from stages.devices.timing import Conditions, Measurement, TimingProtocol
from stages.errors import DeviceLost, NpasError, RunnerCrashed, UsageError

DEFAULT = TimingProtocol()
FIRST_LOOK, LAST_LOOK = 0.2, 2.0  # seconds between looks at a job: every one wakes the phone for some milliseconds
DESCRIBE_SECONDS = 60
_GRACE = 30.0  # the runner ends itself when it is silent; this much later it is ended from here


class Android:
    """The Device protocol on one phone. ``connect()`` opens the connection; ``base`` is the folder there in which programs may run."""

    target = "android-arm64"

    def __init__(self, connect: Callable[[], Connection], say: Callable[[str], None] = lambda line: None, base: str = BASE):
        self._connect, self._say, self._base = connect, say, base
        self._open: Held | None = None

    def probe(self) -> dict[str, Any]:
        """Who this phone is; the same every time."""
        held = self._held()
        return held.bridged(lambda: identity(held.connection))

    def outputs(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol = DEFAULT) -> tuple[tuple[np.ndarray, ...], ...]:
        """What each network computes for ``inputs``; one run each, nothing timed."""
        return self._run(_program(models), inputs, protocol, []).outputs

    def measure(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol, expected: Expected | None = None) -> Measurement:
        """Time the networks of one executable in interleaved rounds. Beside what the host may raise: DeviceLost, DeviceFull, InvalidMeasurement (it stays hot)."""
        done = self._run(_program(models), inputs, protocol, runner.timing_arguments(protocol, "expect" if expected else "", expected.tolerance if expected else 0), expected)
        measured = runner.measurement(done.events, done.outputs, done.manifests, protocol, done.cores, strict=not done.ready.facts["emulated"], conditions=done.around)
        return _with_warnings(measured, done.ready.warnings)

    def profile(self, model: Model, inputs: Sequence[np.ndarray], runs: int, protocol: TimingProtocol) -> list[float]:
        """Median ms over ``runs`` of each entry of the manifest's kernels, in its order."""
        return [float(v) for v in np.median(self._run(_program([model]), inputs, protocol, ["--profile", str(runs)]).events.profiles[0], axis=0)]

    def manifests(self, models: Sequence[Model]) -> list[dict[str, Any]]:
        """The manifest of each network inside the executable, as that tells it on the phone."""
        program = _program(models)
        with self._locked(), tempfile.TemporaryDirectory(prefix="npas-") as work, self._job("describe") as (job, _):
            job.held.push(program.path, f"{job.folder}/runner", 0o755)
            return _describe(job, program, Path(work))

    def ready(self) -> None:
        """See Device.ready; over a new connection."""
        self.close()
        Thermal(self._held()).cool(0.0, self._say)
        check_free(self._held(), self._base)

    def close(self) -> None:
        """End the connection; the next question opens it again."""
        if self._open:
            self._open.connection.close()
        self._open = None

    def _held(self) -> Held:
        if self._open is None:
            self._open = Held(self._connect(), self._say)
        return self._open

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for another npas of this computer that measures on the phone, then keep the phone."""
        name = re.sub(r"[^\w.-]", "_", self._held().connection.name)
        with open(cache_dir("phones") / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _job(self, key: str) -> Iterator[tuple[Job, bool]]:
        """The job that measures ``key``, and whether it had been left by an earlier npas. Ended and removed whatever happens, unless the phone is lost when it runs: then it goes on, to be found again."""
        held = self._held()
        job = Job.find(held, key, self._base)
        found, job = job is not None, job or Job.prepare(held, self._base)
        try:
            yield job, found
        except DeviceLost as loss:
            if not job.started:
                job.give_up()
                raise
            raise DeviceLost(f"{loss.message} The measurement goes on there.", "Bring the phone back and run the same command: it takes the finished runs over.") from loss
        except BaseException:
            with suppress(NpasError):  # what went wrong first is what matters
                job.clear()
            raise
        job.clear()

    def _run(self, program: _Program, inputs: Sequence[np.ndarray], protocol: TimingProtocol, mode: Sequence[str], expected: Expected | None = None) -> _Done:
        with self._locked(), tempfile.TemporaryDirectory(prefix="npas-") as folder:
            held, work = self._held(), Path(folder)
            ready, thermal = inspect(held), Thermal(held)
            cores = choose_cores(protocol.cluster or "big", protocol.cpus, protocol.threads, ready.facts["clusters"], ready.allowed)
            files = _files(work, inputs, expected)
            key = _key(program, files, protocol, cores, mode)
            with self._job(key) as (job, found):
                if found:
                    self._say(f"taking over the measurement that an earlier npas has started on {held.connection.name}")
                else:
                    thermal.cool(protocol.cool_seconds, self._say)
                    for local, remote in [(program.path, "runner"), *((file, file.name) for file in files)]:
                        held.push(local, f"{job.folder}/{remote}", 0o755 if remote == "runner" else 0o644)
                manifests = _describe(job, program, work, known=found)
                for manifest in manifests:
                    runner.check_inputs(str(program.path), manifest, inputs)
                named = [file.name for file in files if file.name.startswith("input")]
                words = runner.arguments(list(zip(program.names, manifests, strict=True)), named, "events", "out", protocol, cores)
                job.ready(key)
                job.start(["./runner", *words, *mode, "--silence", str(protocol.timeout_seconds)], work)
                code = _wait(job, protocol, thermal)
                thermal.look(at_once=bool(mode))
                events = _collect(job, work, code, manifests, protocol)
                outputs = tuple(runner.read_outputs(str(work / "out"), k, manifest) for k, manifest in enumerate(manifests))
                if expected and code == runner.WRONG:
                    runner.raise_wrong(expected, outputs)
                return _Done(events, outputs, manifests, cores, ready, conditions(ready, held, thermal, cores[0]))


@dataclass(frozen=True)
class _Program:
    """An executable of this computer and which of its networks to run."""

    path: Path
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Done:
    events: runner.Events
    outputs: tuple[tuple[np.ndarray, ...], ...]
    manifests: list[dict[str, Any]]
    cores: tuple[int, ...]
    ready: Ready
    around: Conditions


def _program(models: Sequence[Model]) -> _Program:
    linked = [model for model in models if isinstance(model, Linked)]
    if len(linked) < len(models) or len({model.program for model in linked}) != 1:
        raise UsageError("A phone runs networks that are linked into one executable.", "Make it with 'npas compile --target android-arm64'.")
    return _Program(existing(linked[0].program), tuple(model.name for model in linked))


def _files(work: Path, inputs: Sequence[np.ndarray], expected: Expected | None) -> list[Path]:
    """The runner's inputs, and what it has to compute, as files to push."""
    for i, values in enumerate(inputs):
        np.ascontiguousarray(values).tofile(work / f"input{i}.raw")
    if expected:
        runner.write_expected(expected, work / "expect")
    return sorted(work.iterdir())


def _key(program: _Program, files: Sequence[Path], protocol: TimingProtocol, cores: Sequence[int], mode: Sequence[str]) -> str:
    """What is measured and how, as 16 hexadecimal digits."""
    parts = [sha256(program.path), *program.names, *(sha256(file) for file in files), repr(protocol), str(cores), *mode]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _describe(job: Job, program: _Program, work: Path, known: bool = False) -> list[dict[str, Any]]:
    """The manifest of each network; the runner writes them on the phone, unless that is ``known`` to be done."""
    if not known:
        words = " ".join(f"--model {name} '' 0" for name in program.names)
        rc, text = job.held.shell(f"cd {job.folder} && ./runner --describe --events described --save about {words} </dev/null", DESCRIBE_SECONDS)
        runner.check_exit(rc, "", text)
    found = []
    for k, name in enumerate(program.names):
        local = work / f"about.{k}.manifest.json"
        job.held.pull(f"{job.folder}/{local.name}", local)
        found.append(runner.parse_manifest(name, local.read_text(encoding="utf-8", errors="replace")))
    return found


def _wait(job: Job, protocol: TimingProtocol, thermal: Thermal) -> int:
    """The runner's exit status. RunnerCrashed when it has vanished or is silent although it should have ended itself."""
    pause, lines, silent, vanished = FIRST_LOOK, -1, 0.0, False
    while True:
        time.sleep(pause)
        look = job.look()
        if look.rc is not None:
            return look.rc
        if not look.alive and vanished:
            raise RunnerCrashed(f"The runner on {job.held.connection.name} vanished without an exit status (137).", "The phone ended it, for lack of memory or at a restart: close other apps and measure again.")
        vanished = not look.alive  # its shell may be about to write the status
        silent = 0.0 if look.lines != lines else silent + pause
        if silent > protocol.timeout_seconds + _GRACE:
            raise runner.timed_out(protocol)
        lines, pause = look.lines, min(LAST_LOOK, 1.3 * pause)
        thermal.look()


def _collect(job: Job, work: Path, code: int, manifests: Sequence[dict[str, Any]], protocol: TimingProtocol) -> runner.Events:
    """The events, once the runner has ended with ``code``; its outputs lie in ``work`` then. RunnerCrashed unless it ended well, or refused wrong outputs."""
    with suppress(NpasError):  # a runner that died at once has written nothing
        job.held.pull(f"{job.folder}/events", work / "events")
    lines = (work / "events").read_text(encoding="utf-8", errors="replace").splitlines() if (work / "events").exists() else []
    events = runner.read_events(lines)
    if events.silent:
        raise runner.timed_out(protocol)
    if code != runner.WRONG or events.error:
        runner.check_exit(code, events.error, job.held.shell(f"cat {job.folder}/stderr")[1])
    for k, manifest in enumerate(manifests):
        for o in range(len(manifest["outputs"])):
            job.held.pull(f"{job.folder}/out.{k}.{o}.raw", work / f"out.{k}.{o}.raw")
    return events


def _with_warnings(measured: Measurement, warnings: Sequence[str]) -> Measurement:
    return replace(measured, reasons=(*measured.reasons, *warnings)) if warnings else measured
