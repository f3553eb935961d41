"""What more workers buy: a simulation of the search's schedule at 1 to 64 workers, from the evaluation times of a real search.

    python benchmarks/workers.py [--times FILE] [--trials 256] [--devices 1] [--json FILE]

``--times`` is the --json of benchmarks/overlap.py; without it a short search on digits is timed now. Each simulated trial takes the times of one that was measured, drawn at random (a trial that
was too slow to be trained takes no training). The schedule is that of stages/search/session.py: ``batch`` candidates are proposed as soon as no more than ``batch`` are open, --devices
measure one candidate at a time each, in order of proposal (the search has one), workers train whatever is measured, trials are told in order of proposal. Two columns: ``batch`` as many as
workers (which keeps them busy), and ``batch`` fixed at search_scheme.batch (the search that one worker does, the same trials).
"""

from __future__ import annotations

import heapq
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.search_kit import arguments, prepare
from stages.config import SearchScheme

WORKERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Trial:
    """Seconds that one simulated trial takes; ``train`` is 0 for what is measured only."""

    measure: float
    train: float


def simulate(trials: Sequence[Trial], workers: int, batch: int, propose: float, devices: int = 1) -> float:
    """Seconds until the last trial is told.

    >>> simulate([Trial(0.0, 1.0)] * 8, workers=1, batch=2, propose=0.0), simulate([Trial(0.0, 1.0)] * 8, workers=2, batch=2, propose=0.0)
    (8.0, 4.0)
    """
    device, worker = [0.0] * devices, [0.0] * workers  # when each is free again
    told: list[float] = []  # when each trial was told: a running maximum, for trials are told in order
    proposed, clock = 0, 0.0
    done: list[float] = []
    while proposed < len(trials):
        if proposed - batch > 0:
            clock = max(clock, told[proposed - batch - 1])  # until no more than ``batch`` are open
        clock += propose
        for trial in trials[proposed : proposed + batch]:
            measured = max(clock, heapq.heappop(device)) + trial.measure
            heapq.heappush(device, measured)
            finished = measured
            if trial.train:
                finished = max(measured, heapq.heappop(worker)) + trial.train
                heapq.heappush(worker, finished)
            done.append(finished)
            told.append(max(told[-1], finished) if told else finished)
        proposed += batch
    return told[-1] if told else 0.0


def drawn(times: dict[str, Any], count: int, seed: int = 0) -> list[Trial]:
    """``count`` trials with measured times; the share of untrained ones is that of the search."""
    rng, trained = np.random.default_rng(seed), len(times["training"]) / times["trials"]
    return [Trial(float(rng.choice(times["measuring"])), float(rng.choice(times["training"])) if rng.random() < trained else 0.0) for _ in range(count)]


def measured_now() -> dict[str, Any]:
    """The times of a short search on digits."""
    from benchmarks.overlap import timed_search

    ready = prepare(None)
    ready = replace(ready, config=replace(ready.config, search_scheme=replace(ready.config.search_scheme, early_stop=False)))
    with tempfile.TemporaryDirectory() as folder:
        found = timed_search(ready, 10, Path(folder))
    return {"trials": 10, "training": list(found.training.values()), "measuring": list(found.measuring.values()), "proposing": found.proposing, "wall": found.wall}


def main() -> None:
    """Simulate and print."""
    parser = arguments(__doc__)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--devices", type=int, default=1)
    o = parser.parse_args()
    target = o.json.resolve() if o.json else None
    if o.times:
        found = json.loads(o.times.read_text(encoding="utf-8"))
        times = found["times"] | {"trials": found["trials"], "wall": found["wall_s"]}
    else:
        times = measured_now()
    propose, trials, batch = statistics.mean(times["proposing"]), drawn(times, o.trials, o.seed), SearchScheme().batch
    real = simulate(drawn(times, times["trials"], o.seed), 1, batch, propose)
    print(f"measured: training {statistics.mean(times['training']):.2f} s, compilation and measurement {statistics.mean(times['measuring']):.2f} s, a proposal {propose:.2f} s")
    print(f"check: the search of {times['trials']} trials took {times['wall']:.1f} s, simulated {real:.1f} s\n")
    print(f"| workers | speed-up, batch = workers | batch = {batch} |\n|---:|---:|---:|")
    rows, one = [], simulate(trials, 1, batch, propose, o.devices)
    for workers in WORKERS:
        rows.append({"workers": workers, "scaled": one / simulate(trials, workers, max(batch, workers), propose, o.devices), "fixed": one / simulate(trials, workers, batch, propose, o.devices)})
        print(f"| {workers} | {rows[-1]['scaled']:.2f} | {rows[-1]['fixed']:.2f} |")
    if target:
        target.write_text(json.dumps({"trials": o.trials, "devices": o.devices, "rows": rows, "wall_s": times["wall"], "simulated_s": real}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
