"""One run of the search over a journal that may hold earlier ones: propose, measure ahead, train, tell. Imports errors, progress, evaluator, lines, sampler, space, trials.

What is proposed and told doesn't depend on who finishes first. Trials are told in the order in which they were proposed, and ``batch`` new ones are proposed as soon as no
more than ``batch`` are open. So the latency of the next batch is measured while this one trains, up to ``batch`` workers have work at any time, and the search is the same for
any number of workers. What completes out of turn is journalled at once and told in its turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from stages.errors import NpasError, WorkerLost
from stages.progress import Progress
from stages.search.early_stop import StopRule, stop_rule
from stages.search.evaluator import FATAL, Evaluator, Rules, Trained
from stages.search.lines import describe, trial_line
from stages.search.sampler import Sampler
from stages.search.space import Choices, Trial
from stages.search.trials import Journal, Timing

HOPELESS = 5  # a session whose first so many trials (infeasible ones apart) all fail is stopped: what breaks them isn't the candidates
LOOK = 0.05  # seconds between two looks for a measured candidate while a worker is idle


class Session:
    """The open candidates and where they stand."""

    def __init__(self, sampler: Sampler, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress):
        self.sampler, self.evaluator, self.journal, self.rules, self.progress = sampler, evaluator, journal, rules, progress
        self.known = journal.timings("timing")
        self.seen_at: dict[Choices, int] = {}  # open candidate -> trials that were told when it was proposed
        self.timings: dict[Choices, Future[Timing]] = {}
        self.training: set[Choices] = set()
        self.done: dict[Choices, Trial] = {}  # complete, journalled, and not yet told
        self.earlier: set[Choices] = set()  # complete in an earlier session
        self.repeated: set[Choices] = set()  # lost with its worker once
        self.evaluated: list[Trial] = []
        self.rule: tuple[int, StopRule | None] = (0, None)

    def run(self) -> None:
        """Replay the journal, then go on until ``rules.trials`` are told or there is nothing more to propose."""
        self.replay()
        with measuring_threads(self.evaluator) as threads:
            while self.wanted() > 0 or next(iter(self.sampler.pending), None) in self.done:
                self.propose()
                if not self.sampler.pending:
                    told, size = len(self.sampler.told), self.sampler.space.size
                    self.progress.say(f"all {size} candidates are evaluated" if told == size else f"the strategy has nothing to propose after {told} trials")
                    return
                self.measure(threads)
                self.train()
                first = next(iter(self.sampler.pending))
                if first in self.done:
                    self.tell(self.done.pop(first))
                elif self.training:
                    self.collect()
                else:
                    self.timings[first].exception()  # waits for it

    def replay(self) -> None:
        """Ask and tell again what the journal tells, in the same order, which brings the sampler into the same state."""
        space = self.sampler.space
        self.done = {trial.choices: trial for r in self.journal.records if r["kind"] == "trial" for trial in (self.journal.trial(r),)}
        self.earlier = set(self.done)
        for record in [r for r in self.journal.records if r["kind"] == "ask"]:
            while len(self.sampler.told) < record["told"]:
                self.tell(self.done.pop(next(iter(self.sampler.pending))))
            self.sampler.trials, self.sampler.free = record["trials"], record["free"]
            wanted = tuple(space.decode(at) for at in record["candidates"])
            before = list(self.sampler.pending)
            if self.sampler.ask(record["n"]) != wanted:  # other versions of numpy or scipy may round differently
                self.progress.say("the journal's proposals can't be reproduced here: its results are kept, later proposals may differ from an undisturbed run")
                self.sampler.pending.clear()
                self.sampler.pending.update(dict.fromkeys([*before, *wanted]))
            self.seen_at |= dict.fromkeys(wanted, record["told"])
        self.sampler.trials, self.sampler.free = self.rules.trials, self.rules.free
        if self.earlier:
            self.progress.say(f"continuing after {len(self.earlier)} trials")

    def wanted(self) -> int:
        """Trials that are still to be told."""
        return self.rules.trials - self.sampler.spent()

    def open(self) -> list[Choices]:
        """Candidates to evaluate, in the order of their proposal (fewer than were proposed when ``trials`` was lowered)."""
        return list(self.sampler.pending)[: max(0, self.wanted())]

    def propose(self) -> None:
        """New candidates, when few enough are open; journalled before anything is spent on them."""
        sampler = self.sampler
        while len(sampler.pending) <= self.rules.batch and (n := min(self.rules.batch, self.wanted() - len(sampler.pending))) > 0:
            batch = sampler.ask(n)
            if not batch:
                return
            self.seen_at |= dict.fromkeys(batch, len(sampler.told))
            self.journal.append("ask", trials=sampler.trials, free=sampler.free, n=n, told=len(sampler.told), candidates=[sampler.space.encode(c) for c in batch])

    def measure(self, threads: ThreadPoolExecutor) -> None:
        """Queue the latencies that are missing."""
        for choices in self.open():
            if choices not in self.timings and choices not in self.done:
                self.timings[choices] = threads.submit(self.timing, choices)

    def timing(self, choices: Choices) -> Timing:
        """The candidate's latency, measured unless the journal has it. Runs in a measuring thread."""
        return self.known.get(choices) or measured(choices, self.evaluator, self.journal)

    def train(self) -> None:
        """Hand over the candidates that are measured and worth it; the others are complete with that."""
        for choices in self.open():
            if choices in self.done or choices in self.training:
                continue
            if not self.timings[choices].done():
                continue  # another device may be done with the next one
            untrained = self.untrained(choices)
            if untrained is None:
                self.training.add(choices)
                self.evaluator.trainers.submit(choices, (choices, self.stop_rule(self.seen_at[choices])))
            else:
                self.complete(untrained)

    def untrained(self, choices: Choices) -> Trial | None:
        """The trial of a measured candidate that needs no training: it couldn't be measured, or is too slow."""
        try:
            timing = self.timings[choices].result()
        except FATAL:
            raise
        except Exception as error:
            return Trial(choices, state="failed", error=describe(error))
        slow = timing.ms > self.rules.budget_ms * (1 + self.rules.margin)
        return Trial(choices, None, state="infeasible", **_figures(timing)) if slow else None

    def stop_rule(self, told: int) -> StopRule | None:
        """From the first ``told`` trials: what was known when the candidate was proposed, whoever has finished since."""
        if self.rules.early_stop is not None and self.rule[0] != told:
            self.rule = (told, stop_rule(list(self.sampler.told.values())[:told], self.rules.budget_ms, self.rules.early_stop))
        return self.rule[1]

    def collect(self) -> None:
        """Wait for a trained candidate; while a worker is idle, only for a moment, since the next candidate may be measured meanwhile."""
        trainers = self.evaluator.trainers
        unmeasured = any(c not in self.done and not self.timings[c].done() for c in self.open())
        try:
            choices, answer = trainers.next(LOOK if unmeasured and trainers.pending < trainers.size else None)
        except TimeoutError:
            return
        self.training.discard(choices)
        if isinstance(answer, FATAL):
            raise answer
        if isinstance(answer, WorkerLost) and choices not in self.repeated:
            self.repeated.add(choices)
            self.progress.say(f"{describe(answer)} Its candidate is evaluated once more.")
            return
        self.complete(self.trained(choices, answer))

    def trained(self, choices: Choices, answer: Any) -> Trial:
        """The trial of a candidate that came back from training."""
        timing = self.timings[choices].result()
        if not isinstance(answer, Trained):
            return Trial(choices, state="failed", error=describe(answer), **_figures(timing))
        if not math.isfinite(answer.accuracy):
            return Trial(choices, state="failed", error=f"{self.evaluator.metric} is {answer.accuracy}", **_figures(timing))
        state = "complete" if timing.ms <= self.rules.budget_ms else "infeasible"
        return Trial(choices, answer.accuracy, state=state, curve=answer.curve, stopped=answer.stopped, **_figures(timing))

    def complete(self, trial: Trial) -> None:
        """Journal a result; it is told in its turn."""
        self.journal.add_trial(trial)
        self.done[trial.choices] = trial

    def tell(self, trial: Trial) -> None:
        """The sampler learns it, the person sees it; the bar moves when it counts."""
        before = self.sampler.spent()
        self.sampler.tell([trial])
        line = "" if trial.choices in self.earlier else trial_line(self.sampler, trial, self.rules.budget_ms, self.rules.trials, self.evaluator.metric)
        if self.sampler.spent() > before:
            self.progress.advance(line)
        elif line:
            self.progress.say(line)
        if trial.choices in self.earlier:
            return
        if trial.state != "infeasible":
            self.evaluated.append(trial)
        if len(self.evaluated) == HOPELESS and all(t.state == "failed" for t in self.evaluated):
            raise NpasError(
                f"The first {HOPELESS} candidates all failed; the last one: {trial.error}.",
                "This is not about the candidates. Put it right and run the same command: it continues.",
            )


@contextmanager
def measuring_threads(evaluator: Evaluator) -> Iterator[ThreadPoolExecutor]:
    """One thread for each device: that measures one candidate at a time. What is queued is dropped at the end."""
    executor = ThreadPoolExecutor(evaluator.measurers, "latency")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def measured(choices: Choices, evaluator: Evaluator, journal: Journal) -> Timing:
    """The latency, journalled; ValueError when it is no positive number."""
    timing = evaluator.latency(choices)
    if not (math.isfinite(timing.ms) and timing.ms > 0):
        raise ValueError(f"latency is {timing.ms} ms")
    journal.add_timing("timing", choices, timing)
    return timing


def _figures(timing: Timing) -> dict[str, Any]:
    return {"latency_ms": timing.ms, "dense_ms": timing.dense_ms, "ci95": timing.ci95}
