"""The search itself: survey, then trials, then confirm. Imports errors, progress, and of search/ what knows nothing of networks; accuracy and latency are callables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stages.errors import Interrupted
from stages.progress import Progress, bar
from stages.search.confirm import confirm
from stages.search.evaluator import Evaluator, Rules
from stages.search.sampler import Sampler
from stages.search.session import Session
from stages.search.space import Space, Trial
from stages.search.survey import survey
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

    1. Survey: the latency of each of ``space.first``. If none meets the budget, it is out of reach and no trial is run: ``space.first`` should therefore contain the fastest candidates
       that there are. The first trials are, of each kind of uniform scheme, the mildest within the budget.
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
        raise Interrupted(f"Stopped after {done} trials.", "Run the same command to continue; no finished trial is lost.") from None
    return Outcome(tuple(trials), best, _fastest(journal), sampler)


def _fastest(journal: Journal) -> float | None:
    seen: Sequence[float] = [r["ms"] for r in journal.records if r["kind"] in ("timing", "confirmed")]
    return min(seen, default=None)
