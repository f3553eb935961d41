"""How well a search hides compilation and measurement behind training, and what training beside it does to the latencies.

    python benchmarks/overlap.py [--params FILE] [--trials 12] [--repeat 2] [--seed 0] [--json FILE]

1. Wall time of a search's trials (proposals, compilation, measurement, training) against the training of the same candidates alone, on the same cores with the same number of threads, in turn;
   the smallest of --repeat each (goal: within 10 %). Early stopping is off, so that both train the same.
2. The latency of some of these candidates with and without training beside the measurement, in turn: the candidate's and the dense network's own milliseconds, and their ratio, by which the
   search decides. Medians over the candidates and rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.search_kit import Prepared, arguments, prepare
from stages.progress import Silent
from stages.search import TUNABLES, make_sampler
from stages.search.accuracy import FastEvaluation
from stages.search.evaluate import open_evaluator, pinned, share_cores
from stages.search.evaluator import Evaluator, Inline, Rules
from stages.search.scheme_space import focus
from stages.search.session import Session
from stages.search.space import Choices
from stages.search.survey import survey
from stages.search.trials import Journal

CANDIDATES, ROUNDS = 4, 5  # of the second part


@dataclass
class Times:
    """Seconds of each part of one search: what trained and measured which candidate how long, what a proposal took, and all of it."""

    training: dict[Choices, float] = field(default_factory=dict)
    measuring: dict[Choices, float] = field(default_factory=dict)
    proposing: list[float] = field(default_factory=list)
    wall: float = 0.0


def timed_search(ready: Prepared, trials: int, folder: Path) -> Times:
    """One search from an empty journal."""
    c, times = ready.config.search_scheme, Times()
    tunables = {name: getattr(c, name) for name in TUNABLES[c.strategy] if hasattr(c, name)}
    with (
        Journal(folder / f"{time.monotonic_ns()}.jsonl", ready.space.space) as journal,
        open_evaluator(ready.config, ready.task, ready.candidates, ready.space, journal, Silent()) as (evaluator, _, budget_ms),
    ):
        fast, rules = FastEvaluation(ready.config, ready.task, ready.candidates), Rules(budget_ms, trials, c.batch, c.margin)

        def train(choices: Choices, rule: Any) -> Any:
            with clock(times.training, choices):
                return fast.train(ready.space.scheme(choices), rule)

        def latency(choices: Choices) -> Any:
            with clock(times.measuring, choices):
                return evaluator.latency(choices)

        watched = Evaluator(Inline(train), latency, evaluator.confirm, evaluator.one_shot, evaluator.metric)
        space = ready.space.space.starting_with(survey(ready.space.space, watched, journal, rules, Silent()))
        sampler = make_sampler(c.strategy, focus(space, space.first), trials, budget_ms, c.seed, **tunables)
        ask = sampler.ask

        def timed_ask(n: int = 1) -> tuple[Choices, ...]:
            start = time.perf_counter()
            found = ask(n)
            times.proposing.append(time.perf_counter() - start)
            return found

        sampler.ask = timed_ask  # type: ignore[method-assign]
        start = time.perf_counter()
        Session(sampler, watched, journal, rules, Silent()).run()
        times.wall = time.perf_counter() - start
    return times


@contextmanager
def clock(seconds: dict[Choices, float], choices: Choices) -> Iterator[None]:
    """Note how long the block took."""
    start = time.perf_counter()
    yield
    seconds[choices] = time.perf_counter() - start


def training_alone(ready: Prepared, chosen: list[Choices]) -> float:
    """Seconds to train these candidates with nothing beside it."""
    c, fast = ready.config, FastEvaluation(ready.config, ready.task, ready.candidates)
    with pinned(share_cores(c.search_scheme.train_threads, c.compile.threads)[1]):
        start = time.perf_counter()
        for choices in chosen:
            fast.train(ready.space.scheme(choices))
        return time.perf_counter() - start


def shift(ready: Prepared, chosen: list[Choices], folder: Path) -> dict[str, float]:
    """Medians of (value with training beside / value without) - 1, for the candidate's ms, the dense network's ms and their ratio."""
    fast = FastEvaluation(ready.config, ready.task, ready.candidates)
    found: dict[str, list[float]] = {"candidate": [], "dense": [], "ratio": []}
    with Journal(folder / "shift.jsonl", ready.space.space) as journal, open_evaluator(ready.config, ready.task, ready.candidates, ready.space, journal, Silent()) as (evaluator, dense_ms, _):
        for choices in chosen * ROUNDS:
            alone = evaluator.latency(choices)
            with training(lambda choices=choices: fast.train(ready.space.scheme(choices))):
                beside = evaluator.latency(choices)
            assert alone.dense_ms is not None and beside.dense_ms is not None
            ratio = beside.ms / alone.ms  # both are (candidate / dense of the same rounds) times the same dense_ms
            found["ratio"].append(ratio - 1)
            found["dense"].append(beside.dense_ms / alone.dense_ms - 1)
            found["candidate"].append(ratio * beside.dense_ms / alone.dense_ms - 1)
    return {name: statistics.median(values) for name, values in found.items()} | {"ratio_spread": max(found["ratio"]) - min(found["ratio"])}


@contextmanager
def training(job: Any) -> Iterator[None]:
    """``job`` again and again in a thread of its own (on this thread's cores), until the block ends."""
    stop, started = threading.Event(), threading.Event()

    def loop() -> None:
        while not stop.is_set():
            started.set()
            job()

    thread = threading.Thread(target=loop)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=2)
    o = parser.parse_args()
    target = o.json.resolve() if o.json else None
    ready = prepare(o.params.resolve() if o.params else None, seed=o.seed)
    ready = replace(ready, config=replace(ready.config, search_scheme=replace(ready.config.search_scheme, early_stop=False)))
    with tempfile.TemporaryDirectory() as folder:
        searches, alone = [], []
        for _ in range(o.repeat):
            searches.append(timed_search(ready, o.trials, Path(folder)))
            alone.append(training_alone(ready, list(searches[-1].training)) / len(searches[-1].training))
        best = min(searches, key=lambda t: t.wall / len(t.training))
        moved = shift(ready, list(best.training)[:CANDIDATES], Path(folder))
    per = best.wall / len(best.training)
    found = {
        "trials": o.trials, "trained": len(best.training), "wall_s": best.wall, "wall_per_training_s": per, "alone_per_training_s": min(alone), "wall_over_alone": per / min(alone),
        "unhidden_share": 1 - sum(best.training.values()) / best.wall, "proposing_s": sum(best.proposing), "shift": moved,
        "times": {"training": list(best.training.values()), "measuring": list(best.measuring.values()), "proposing": best.proposing},
    }  # fmt: skip
    print(f"{o.trials} trials, {len(best.training)} of them trained: {best.wall:.1f} s, {per:.2f} s for each training; training alone {min(alone):.2f} s: ratio {per / min(alone):.3f}")
    print(f"not hidden behind training: {100 * found['unhidden_share']:.1f} % of the wall time, of it proposals {sum(best.proposing):.2f} s; measurements took {sum(best.measuring.values()):.1f} s")
    print("training beside a measurement shifts: " + ", ".join(f"{name} {100 * moved[name]:+.2f} %" for name in ("candidate", "dense", "ratio")) + f" (ratio: spread {100 * moved['ratio_spread']:.2f} %)")
    if target:
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
