"""The search itself: survey, then trials, then confirm. Imports errors, progress, and of search/ what knows nothing of networks; accuracy and latency are callables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stages.errors import Interrupted, NpasError
from stages.progress import Progress, bar
from stages.search.confirm import confirm
from stages.search.evaluator import FATAL, Evaluator, Rules
from stages.search.lines import describe
from stages.search.sampler import Sampler
from stages.search.session import Session, measured, measuring_threads
from stages.search.space import Choices, Space, Trial
from stages.search.trials import Journal


@dataclass(frozen=True)
class Outcome:
    """Every trial in order, the best one whose confirmed latency meets the budget (None: the budget is infeasible), the lowest latency measured on the way, and the sampler that
    has learnt them (None: the budget was found out of reach before any trial)."""

    trials: tuple[Trial, ...]
    best: Trial | None
    fastest_ms: float | None
    sampler: Sampler | None = field(default=None, compare=False)


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
        with bar(progress, "search-scheme", rules.trials):
            Session(sampler, evaluator, journal, rules, progress).run()
        trials, best = confirm(sampler, evaluator, journal, rules.budget_ms, progress)
    except KeyboardInterrupt:
        done = sum(r["kind"] == "trial" for r in journal.records)
        raise Interrupted(f"Stopped after {done} of {rules.trials} trials.", "Run the same command to continue; no finished trial is lost.") from None
    return Outcome(tuple(trials), best, _fastest(journal), sampler)


def survey(space: Space, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress) -> list[Choices]:
    """Those of ``space.first`` that bracket the budget: the slowest two within it, then the fastest above it; () when none is within.

    One that can't be measured is named and left out.
    """
    known = journal.timings("timing")
    todo = [choices for choices in space.first if choices not in known]
    with bar(progress, "measuring uniform schemes", len(todo)), measuring_threads(evaluator) as threads:
        timings = {choices: threads.submit(measured, choices, evaluator, journal) for choices in todo}
        for choices in todo:
            try:
                known[choices] = timings[choices].result()
            except FATAL:
                raise
            except Exception as error:
                progress.say(f"left out: {describe(error)}")
            progress.advance()
    found = [choices for choices in space.first if choices in known]
    if space.first and not found:
        raise NpasError("No uniform scheme could be measured.", "The lines above say why for each.")
    found.sort(key=lambda c: known[c].ms)
    within = sum(known[c].ms <= rules.budget_ms for c in found)
    return [*reversed(found[max(0, within - 2) : within]), *found[within : within + 1]] if within else []


def _fastest(journal: Journal) -> float | None:
    seen: Sequence[float] = [r["ms"] for r in journal.records if r["kind"] in ("timing", "confirmed")]
    return min(seen, default=None)
