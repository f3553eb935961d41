"""The process that holds one engine: ``python -m benchmarks.peers.worker convert|serve JOB CORES``. Runs in the engine's environment, on any Python from 3.9.

``serve`` pins itself to CORES ("0" or "0,1"), loads the network and compares its output with PyTorch's, then answers lines of JSON on its standard input:
``{"run": k}`` -> ``{"wall_ms": [k], "cpu_ms": [k], "rest_ms": t, "idle_ms": t, "idle_cpu_ms": t, "total_cpu_ms": t}``. One untimed run precedes the k: the caches were another engine's. Thread pools spin
for a while after a run (OpenMP's for up to 200 ms), which helps the engine in production and would rob the next one here: the answer waits until they sleep (rest). Idle is the time
since the last answer, and what was computed in it proves that they did. A worker ends with its standard input, so nothing outlives the parent. What engines print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import IO, Any

import numpy as np

from benchmarks.peers.job import Job, Session

REST_MS, REST_STEP_MS = 500.0, 3.0


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error relative to the largest output; NaN stays NaN. ValueError on another number of outputs."""
    if found.size != expected.size:
        raise ValueError(f"{found.size} outputs, but PyTorch has {expected.size}")
    return float(np.abs(found.reshape(expected.shape) - expected).max() / np.abs(expected).max())


def turn(session: Session, runs: int) -> tuple[list[float], list[float]]:
    """Wall and CPU milliseconds of ``runs`` runs, after one that isn't timed."""
    wall, cpu = [], []
    session.step()
    for _ in range(runs):
        cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
        session.step()
        wall.append((time.perf_counter_ns() - start) / 1e6)
        cpu.append((time.process_time_ns() - cpu_start) / 1e6)
    return wall, cpu


def resident_mib() -> int:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def rest() -> float:
    """Wait until this process uses no CPU, at most REST_MS; the milliseconds waited."""
    start = time.perf_counter_ns()
    busy = True
    while busy and (time.perf_counter_ns() - start) / 1e6 < REST_MS:
        used = time.process_time_ns()
        time.sleep(REST_STEP_MS / 1e3)
        busy = (time.process_time_ns() - used) / 1e6 > 0.1 * REST_STEP_MS
    return (time.perf_counter_ns() - start) / 1e6


def serve(session: Session, error: float, requests: IO[str], answers: IO[str]) -> None:
    """Answer until ``requests`` ends."""

    def answer(**values: Any) -> tuple[int, int]:
        answers.write(json.dumps(values) + "\n")
        answers.flush()
        return time.perf_counter_ns(), time.process_time_ns()

    rest()
    rested, rested_cpu = answer(
        version=session.version, note=session.note, relative_error=error, memory_mib=resident_mib(), total_cpu_ms=time.process_time_ns() / 1e6
    )
    for line in requests:
        idle, idle_cpu = time.perf_counter_ns() - rested, time.process_time_ns() - rested_cpu
        wall, cpu = turn(session, json.loads(line)["run"])
        waited, total = rest(), time.process_time_ns() / 1e6
        rested, rested_cpu = answer(wall_ms=wall, cpu_ms=cpu, rest_ms=waited, idle_ms=idle / 1e6, idle_cpu_ms=idle_cpu / 1e6, total_cpu_ms=total)


def reason(error: BaseException) -> str:
    """The last line of what went wrong, for a cell of the table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}".rstrip(": ")[:300]


def main() -> int:
    """Convert or serve; a failure is a line of JSON and a traceback on standard error."""
    action, job, cores = sys.argv[1], Job.parse(sys.argv[2]), {int(c) for c in sys.argv[3].split(",")}
    if action == "serve":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print to file descriptor 1, from C too
    os.sched_setaffinity(0, cores)
    try:
        adapter = importlib.import_module(f"benchmarks.peers.adapters.{job.adapter}")
        if action == "convert":
            adapter.convert(job)
            return 0
        session = adapter.load(job)
        session.step()
        error = relative_error(np.asarray(session.output()), job.expected())
        serve(session, error, sys.stdin, answers)
    except BrokenPipeError:
        return 0  # the parent is gone
    except BaseException as problem:
        answers.write(json.dumps({"failed": reason(problem)}) + "\n")
        answers.flush()
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
