"""The parent's side of a worker: start it, ask it for runs, and never leave it behind. Imports the standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.environments import Unavailable
from benchmarks.peers.job import Job

ROOT = Path(__file__).resolve().parent.parent.parent
CONVERT_SECONDS, LOAD_SECONDS, TURN_SECONDS = 900.0, 600.0, 120.0


def worker_environment(threads: int) -> dict[str, str]:
    """This process's environment with the thread counts that libraries read when they load."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **counts, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


class Worker:
    """One engine in its process. A worker that dies, hangs or answers nonsense raises Unavailable with what it said last, and is killed."""

    def __init__(self, python: str, job: Job, cores: str, log: Path, command: tuple[str, ...] = ("-m", "benchmarks.peers.worker")):
        self.name = job.adapter
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, *command, "serve", job.dump(), cores],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=worker_environment(job.threads),
            )
        self._rest = b""

    def ready(self) -> dict[str, Any]:
        """Waits until the network is loaded and compared: version, note, relative_error, memory_mib."""
        return self._answer(LOAD_SECONDS)

    def run(self, runs: int) -> dict[str, Any]:
        """One turn: wall_ms, cpu_ms, idle_ms, idle_cpu_ms."""
        try:
            _pipe(self._process.stdin).write(json.dumps({"run": runs}).encode() + b"\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise Unavailable(self._death()) from None
        return self._answer(TURN_SECONDS)

    def close(self) -> None:
        """End it: its input ends, and what doesn't listen is killed."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line(seconds))
        if "failed" in answer:
            raise Unavailable(str(answer["failed"]))
        return answer

    def _line(self, seconds: float) -> bytes:
        deadline, file = time.monotonic() + seconds, _pipe(self._process.stdout).fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Unavailable(f"no answer within {seconds:g} s")
            more = os.read(file, 1 << 16)
            if not more:
                raise Unavailable(self._death())
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _death(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"died of signal {-code}" if code < 0 else f"ended with code {code}"


def convert(python: str, job: Job, log: Path) -> None:
    """Run the adapter's ``convert`` in its environment. Raises Unavailable with the reason."""
    command = [python, "-m", "benchmarks.peers.worker", "convert", job.dump(), ",".join(str(c) for c in sorted(os.sched_getaffinity(0)))]
    with log.open("ab") as errors:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=worker_environment(os.cpu_count() or 1), timeout=CONVERT_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"conversion took more than {CONVERT_SECONDS:g} s") from None
    if done.returncode:
        said = done.stdout.decode().strip().splitlines()
        raise Unavailable(f"conversion failed: {json.loads(said[-1])['failed']}" if said else f"conversion ended with code {done.returncode}")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
