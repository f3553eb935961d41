"""The search itself: survey, then ask -> measure and train side by side -> tell, then confirm. Imports errors, progress, sampler, space, trials; accuracy and latency are callables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from stages.errors import DeviceFull, DeviceLost, DeviceNotFound, DeviceUnauthorised, Interrupted, NpasError
from stages.progress import Progress, bar
from stages.search.sampler import Sampler, rank
from stages.search.space import Choices, Space, Trial
from stages.search.trials import Journal, Timing

FATAL = (DeviceNotFound, DeviceUnauthorised, DeviceLost, DeviceFull, Interrupted)  # not the candidate's fault: stop, and continue later
HOPELESS = 5  # a session whose first so many trials (infeasible ones apart) all fail is stopped: what breaks them isn't the candidates


@dataclass(frozen=True)
class Evaluator:
    """What the loop knows of the outside: how accurate and how fast a candidate is.

    ``latency`` runs in a thread of its own while ``accuracy`` runs in the caller's. ``confirm`` measures the final candidates, when nothing else runs.
    All may raise: the candidate is then a failed trial (except for a lost device, which stops the search).
    """

    accuracy: Callable[[Choices], float]
    latency: Callable[[Choices], Timing]
    confirm: Callable[[Choices], Timing]
    metric: str = "top1"


@dataclass(frozen=True)
class Rules:
    """``trials`` in all, ``batch`` between two lessons; a candidate slower than ``budget_ms * (1 + margin)`` isn't trained."""

    budget_ms: float
    trials: int
    batch: int = 5
    margin: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """Every trial in order, the best one whose confirmed latency meets the budget (None: the budget is infeasible), and the lowest latency measured on the way."""

    trials: tuple[Trial, ...]
    best: Trial | None
    fastest_ms: float | None


def search(space: Space, make: Callable[[Space], Sampler], evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress) -> Outcome:
    """Search ``space`` for the most accurate candidate within the budget; whatever the journal holds already is replayed, not repeated.

    1. Survey: the latency of each of ``space.first``. The first trials are those that bracket the budget. If none meets it, it is out of reach and no trial is run:
       ``space.first`` should therefore contain the fastest candidates that there are.
    2. Trials. Latency comes first, since it is cheap: what is slower than the budget by more than ``margin`` is told as infeasible and not trained.
    3. Confirm: the best is measured once more, alone. If it then misses the budget, the next best is, and so on.

    Raises Interrupted on Ctrl-C; the journal then holds all that was finished.
    """
    try:
        first = survey(space, evaluator, journal, rules, progress)
        if space.first and not first:
            return Outcome((), None, _fastest(journal))
        sampler = make(space.starting_with(first))
        run_trials(sampler, evaluator, journal, rules, progress)
        trials, best = confirm(sampler, evaluator, journal, rules, progress)
    except KeyboardInterrupt:
        done = sum(r["kind"] == "trial" for r in journal.records)
        raise Interrupted(f"Stopped after {done} of {rules.trials} trials.", "Run the same command to continue; no finished trial is lost.") from None
    return Outcome(tuple(trials), best, _fastest(journal))


def survey(space: Space, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress) -> list[Choices]:
    """Those of ``space.first`` that bracket the budget: the slowest two within it, then the fastest above it; () when none is within.

    One that can't be measured is named and left out.
    """
    known = journal.timings("timing")
    todo = [choices for choices in space.first if choices not in known]
    with bar(progress, "measuring uniform schemes", len(todo)):
        for choices in todo:
            try:
                known[choices] = _measure(choices, evaluator, journal)
            except FATAL:
                raise
            except Exception as error:
                progress.say(f"left out: {describe(error)}")
            progress.advance()
    measured = [choices for choices in space.first if choices in known]
    if space.first and not measured:
        raise NpasError("No uniform scheme could be measured.", "The lines above say why for each.")
    measured.sort(key=lambda c: known[c].ms)
    within = sum(known[c].ms <= rules.budget_ms for c in measured)
    return [*reversed(measured[max(0, within - 2) : within]), *measured[within : within + 1]] if within else []


def run_trials(sampler: Sampler, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress) -> None:
    """Replay the journal, then evaluate batch after batch until ``rules.trials`` are done or the space is exhausted."""
    session = Session(sampler, evaluator, journal, rules, progress)
    measuring = ThreadPoolExecutor(1, "latency")
    try:
        with bar(progress, "search-scheme", rules.trials):
            session.replay()
            while (missing := rules.trials - len(sampler.told)) > 0:
                batch = list(sampler.pending)[:missing] or session.ask(min(rules.batch, missing))
                if not batch:
                    whole = len(sampler.told) == sampler.space.size
                    progress.say(f"all {sampler.space.size} candidates are evaluated" if whole else f"the strategy has nothing to propose after {len(sampler.told)} trials")
                    break
                timings = [measuring.submit(session.timing, choices) for choices in batch]
                for choices, timing in zip(batch, timings, strict=True):
                    session.finish(choices, timing)
    finally:
        measuring.shutdown(wait=False, cancel_futures=True)


class Session:
    """One run of the loop over a journal that may hold earlier ones."""

    def __init__(self, sampler: Sampler, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress):
        self.sampler, self.evaluator, self.journal, self.rules, self.progress = sampler, evaluator, journal, rules, progress
        self.timings = journal.timings("timing")
        self.evaluated: list[Trial] = []

    def replay(self) -> None:
        """Ask and tell again what the journal tells, in the same order, which brings the sampler into the same state."""
        space, planned = self.sampler.space, self.rules.trials
        for record in tuple(self.journal.records):
            if record["kind"] == "trial":
                self.sampler.tell([self.journal.trial(record)])
                self.progress.advance()
            elif record["kind"] == "ask":
                self.sampler.trials = record["trials"]
                wanted = tuple(space.decode(at) for at in record["candidates"])
                if self.sampler.ask(record["n"]) != wanted:  # other versions of numpy or scipy may round differently
                    self.progress.say(
                        "the journal's proposals can't be reproduced here: its results are kept, later proposals may differ from an undisturbed run"
                    )
                    self.sampler.pending.clear()
                    self.sampler.pending.update(dict.fromkeys(wanted))
        self.sampler.trials = planned
        if self.sampler.told:
            self.progress.say(f"continuing after {len(self.sampler.told)} of {planned} trials")

    def ask(self, n: int) -> list[Choices]:
        """New candidates, journalled before anything is spent on them."""
        batch = self.sampler.ask(n)
        if batch:
            self.journal.append("ask", trials=self.sampler.trials, n=n, candidates=[self.sampler.space.encode(c) for c in batch])
        return list(batch)

    def timing(self, choices: Choices) -> Timing:
        """The candidate's latency, measured unless the journal has it. Runs in the measuring thread."""
        return self.timings.get(choices) or _measure(choices, self.evaluator, self.journal)

    def finish(self, choices: Choices, timing: Future[Timing]) -> None:
        """Wait for the latency, train if it is worth it, journal, tell, say."""
        trial = self.evaluate(choices, timing)
        self.journal.add_trial(trial)
        self.sampler.tell([trial])
        if trial.state != "infeasible":
            self.evaluated.append(trial)
        self.progress.advance(trial_line(self.sampler, trial, self.rules, self.evaluator.metric))
        if len(self.evaluated) == HOPELESS and all(t.state == "failed" for t in self.evaluated):
            raise NpasError(
                f"The first {HOPELESS} candidates all failed; the last one: {trial.error}.",
                "This is not about the candidates. Put it right and run the same command: it continues.",
            )

    def evaluate(self, choices: Choices, timing: Future[Timing]) -> Trial:
        """The candidate's Trial; what goes wrong with it is a failed one."""
        measured: dict = {}
        try:
            t = timing.result()
            measured = {"latency_ms": t.ms, "dense_ms": t.dense_ms, "ci95": t.ci95}
            if t.ms > self.rules.budget_ms * (1 + self.rules.margin):
                return Trial(choices, None, state="infeasible", **measured)
            accuracy = float(self.evaluator.accuracy(choices))
            if not math.isfinite(accuracy):
                raise ValueError(f"{self.evaluator.metric} is {accuracy}")
            return Trial(choices, accuracy, state="complete" if t.ms <= self.rules.budget_ms else "infeasible", **measured)
        except FATAL:
            raise
        except Exception as error:
            return Trial(choices, state="failed", error=describe(error), **measured)


def confirm(sampler: Sampler, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress) -> tuple[list[Trial], Trial | None]:
    """All trials, with the latencies measured again at the end, and the most accurate one that still meets the budget.

    One whose whole interval lies within the budget goes before a more accurate one that may exceed it: another measurement, such as npas bench's, must agree.
    """
    trials, known = dict(sampler.told), journal.timings("confirmed")
    likely: Trial | None = None
    for trial in sorted((t for t in trials.values() if t.meets(rules.budget_ms)), key=rank):
        try:
            timing = known.get(trial.choices) or evaluator.confirm(trial.choices)
        except FATAL:
            raise
        except Exception as error:
            again, why = replace(trial, state="failed", error=describe(error)), f"failed when measured again ({describe(error)})"
        else:
            if trial.choices not in known:
                journal.add_timing("confirmed", trial.choices, timing)
            again = replace(trial, latency_ms=timing.ms, dense_ms=timing.dense_ms, ci95=timing.ci95)
            if timing.ms <= rules.budget_ms:
                trials[trial.choices] = again
                if (timing.ci95[1] if timing.ci95 else timing.ms) <= rules.budget_ms:
                    return list(trials.values()), again
                likely = likely or again
                continue
            again, why = replace(again, state="infeasible"), f"took {milliseconds(timing.ms, rules.budget_ms)} ms when measured again, over the budget"
        progress.say(f"#{list(trials).index(trial.choices) + 1} {why}: next best")
        trials[trial.choices] = again
    return list(trials.values()), likely


def trial_line(sampler: Sampler, trial: Trial, rules: Rules, metric: str) -> str:
    """``trial 17/30  top1 96.4  0.623 ms <= 0.700  best #12 96.6``."""
    best, order = sampler.best(), list(sampler.told)
    last = f"best #{order.index(best.choices) + 1} {100 * (best.accuracy or 0):.1f}" if best else "best none"
    head = f"trial {order.index(trial.choices) + 1}/{rules.trials}"
    if trial.state == "failed":
        return f"{head}  failed: {trial.error}  {last}"
    ms, budget = milliseconds(trial.latency_ms or 0.0, rules.budget_ms), milliseconds(rules.budget_ms, rules.budget_ms)
    score = f"{metric} {100 * trial.accuracy:.1f}" if trial.accuracy is not None else "not trained"
    return f"{head}  {score}  {ms} ms {'>' if trial.state == 'infeasible' else '<='} {budget}  {last}"


def milliseconds(value: float, budget_ms: float) -> str:
    """A latency with the decimals that its budget deserves: 6.62 beside 6.70, 0.623 beside 0.700, 0.0312 beside 0.0400."""
    return f"{value:.{max(2, 2 - math.floor(math.log10(budget_ms))) if budget_ms > 0 else 2}f}"


def describe(error: BaseException) -> str:
    """One line about an exception, for a row and the screen."""
    text = error.message if isinstance(error, NpasError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]


def _measure(choices: Choices, evaluator: Evaluator, journal: Journal) -> Timing:
    timing = evaluator.latency(choices)
    if not (math.isfinite(timing.ms) and timing.ms > 0):
        raise ValueError(f"latency is {timing.ms} ms")
    journal.add_timing("timing", choices, timing)
    return timing


def _fastest(journal: Journal) -> float | None:
    seen: Sequence[float] = [r["ms"] for r in journal.records if r["kind"] in ("timing", "confirmed")]
    return min(seen, default=None)
