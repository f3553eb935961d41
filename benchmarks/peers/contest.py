"""One network at one thread count: every engine loaded in a process of its own, then timed in rounds, one engine's turn after another's."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.client import Worker
from benchmarks.peers.environments import Unavailable

TOLERANCE = 1e-3  # largest error over largest output; Winograd in fp32 costs some 1e-4
SPINNING = 0.02  # an idle worker that uses more of a core than this disturbs the others


@dataclasses.dataclass
class Entry:
    """One engine's results: ``failed`` says why there are none, or no more. Times in milliseconds, in the order of the rounds."""

    engine: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    wall_ms: list[float] = dataclasses.field(default_factory=list)
    cpu_ms: list[float] = dataclasses.field(default_factory=list)
    total_cpu_ms: float = 0.0
    idle_ms: float = 0.0
    idle_cpu_ms: float = 0.0
    failed: str = ""

    @property
    def idle_load(self) -> float:
        """Share of a core that the engine used while it wasn't its turn."""
        return self.idle_cpu_ms / self.idle_ms if self.idle_ms else 0.0


def contest(starts: dict[str, Callable[[], Worker]], rounds: int, runs: int, say: Callable[[str], None]) -> tuple[dict[str, Entry], float]:
    """Load the engines one by one, then ``rounds`` rounds of ``runs`` timed runs each. Whatever happens, no worker outlives the call.

    Returns the results and how many cores other processes of the machine used during the rounds, on average: above a tenth, wall times are theirs as much as the engines'.
    """
    entries = {name: Entry(name) for name in starts}
    workers: dict[str, Worker] = {}
    try:
        for name, start in starts.items():
            say(f"loading {name}")
            with _reporting(entries[name], workers):
                workers[name] = start()
                entries[name].facts = workers[name].ready()
                entries[name].total_cpu_ms = entries[name].facts.pop("total_cpu_ms")
                error = entries[name].facts["relative_error"]
                if not error <= TOLERANCE:
                    raise Unavailable(f"computes something else than PyTorch: relative error {error:.2g}")
        began, busy, own = time.monotonic(), busy_seconds(), sum(entry.total_cpu_ms for entry in entries.values())
        for index in range(rounds):
            say(f"round {index + 1} of {rounds}")
            names = list(workers)
            shift = index % max(1, len(names))
            for name in names[shift:] + names[:shift]:  # nobody always follows the same neighbour's first run
                with _reporting(entries[name], workers):
                    _turn(entries[name], workers[name].run(runs))
        seconds, busy, own = time.monotonic() - began, busy_seconds() - busy, sum(entry.total_cpu_ms for entry in entries.values()) - own
    finally:
        for worker in workers.values():
            worker.kill()
    return entries, max(0.0, busy - own / 1e3) / seconds if seconds else 0.0


def busy_seconds() -> float:
    """CPU time that all processes of the machine used since it started, all cores together."""
    with open("/proc/stat") as file:
        user, nice, system = (int(ticks) for ticks in file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _turn(entry: Entry, answer: dict[str, Any]) -> None:
    entry.wall_ms += answer["wall_ms"]
    entry.cpu_ms += answer["cpu_ms"]
    entry.idle_ms += answer["idle_ms"]
    entry.idle_cpu_ms += answer["idle_cpu_ms"]
    entry.total_cpu_ms = answer["total_cpu_ms"]


class _reporting:  # noqa: N801 (used like contextlib's)
    """An engine that fails is reported in the table and leaves the contest; the others go on."""

    def __init__(self, entry: Entry, workers: dict[str, Worker]):
        self.entry, self.workers = entry, workers

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Unavailable):
            return False
        self.entry.failed = str(error)
        worker = self.workers.pop(self.entry.engine, None)
        if worker is not None:
            worker.kill()
        return True
