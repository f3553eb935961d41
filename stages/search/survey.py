"""Before the first trial: which uniform schemes meet the budget, by latency alone. Imports errors, progress, and of search/ what knows nothing of networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stages.errors import NpasError
from stages.progress import Progress, bar
from stages.search.evaluator import FATAL, Evaluator, Rules
from stages.search.lines import describe
from stages.search.session import measured, measuring_threads
from stages.search.space import Choices, Space
from stages.search.trials import Journal

STARTS, SHARE = 3, 8  # first trials: so many, or an eighth of all trials if that is more

Measure = Callable[[Sequence[Choices]], None]


def survey(space: Space, evaluator: Evaluator, journal: Journal, rules: Rules, progress: Progress) -> list[Choices]:
    """The first trials: of each of ``space.uniform`` the mildest rung within the budget, those nearest their ladder's mild end first; () when none of ``space.first`` is within.

    Which kind of pruning suits a network is the coarsest of all choices, so the search tries the best of each kind before it mixes them. Rungs are found by bisection, all ladders side by side.
    A space without ladders starts with those of ``space.first`` that bracket the budget: the slowest two within it, then the fastest above it. What can't be measured is named and left out.
    """
    known = journal.timings("timing")
    total = len(space.first) + sum(1 + math.ceil(math.log2(len(ladder) + 1)) for ladder in space.uniform)
    with bar(progress, "measuring uniform schemes", total), measuring_threads(evaluator) as threads:

        def measure(wanted: Sequence[Choices]) -> None:
            timings = {choices: threads.submit(measured, choices, evaluator, journal) for choices in wanted if choices not in known}
            for choices, timing in timings.items():
                try:
                    known[choices] = timing.result()
                except FATAL:
                    raise
                except Exception as error:
                    progress.say(f"left out: {describe(error)}")
                progress.advance()

        measure(space.first)
        found = sorted((choices for choices in space.first if choices in known), key=lambda c: known[c].ms)
        if space.first and not found:
            raise NpasError("No uniform scheme could be measured.", "The lines above say why for each.")
        within = sum(known[c].ms <= rules.budget_ms for c in found)
        if not within:
            return []
        mildest = climb(space.uniform, lambda c: c in known and known[c].ms <= rules.budget_ms, measure)
    starts = list(dict.fromkeys(mildest))[: max(STARTS, rules.trials // SHARE)]
    return starts or [*reversed(found[max(0, within - 2) : within]), *found[within : within + 1]]


def climb(ladders: Sequence[Sequence[Choices]], fits: Callable[[Choices], bool], measure: Measure) -> list[Choices]:
    """Of each ladder, from the mildest rung to the fastest, the mildest that ``fits``, those farthest from their fastest end first; a ladder of which none fits has none.

    ``measure`` is called with one rung of each open ladder at a time, so that several devices can share the work. Latencies are taken to fall along a ladder; where noise says otherwise, what
    is returned still fits.
    """
    rungs = [list(dict.fromkeys(ladder)) for ladder in ladders]
    measure([ladder[-1] for ladder in rungs])
    spans = {i: (-1, len(ladder) - 1) for i, ladder in enumerate(rungs) if fits(ladder[-1])}  # (too slow, fits)
    while middles := {i: (low + high) // 2 for i, (low, high) in spans.items() if high - low > 1}:
        measure([rungs[i][middle] for i, middle in middles.items()])
        for i, middle in middles.items():
            low, high = spans[i]
            spans[i] = (low, middle) if fits(rungs[i][middle]) else (middle, high)
    order = sorted(spans, key=lambda i: spans[i][1] - len(rungs[i]))  # the ends of ladders are alike, their mild rungs may be missing
    return [rungs[i][spans[i][1]] for i in order]
