"""The end of a search: its best candidates are measured once more, alone. Imports progress, evaluator, lines, sampler, space, trials."""

from __future__ import annotations

from dataclasses import replace

from stages.progress import Progress
from stages.search.evaluator import FATAL, Evaluator
from stages.search.lines import describe, milliseconds
from stages.search.sampler import Sampler, rank
from stages.search.space import Trial
from stages.search.trials import Journal


def confirm(sampler: Sampler, evaluator: Evaluator, journal: Journal, budget_ms: float, progress: Progress) -> tuple[list[Trial], Trial | None]:
    """All trials, with the latencies measured again at the end, and the most accurate one that still meets the budget.

    One whose whole interval lies within the budget goes before a more accurate one that may exceed it: another measurement, such as npas bench's, must agree.
    One whose training was stopped early comes last.
    """
    trials, known = dict(sampler.told), journal.timings("confirmed")
    likely: Trial | None = None
    for trial in sorted((t for t in trials.values() if t.meets(budget_ms)), key=rank):
        if likely is not None and trial.stopped:
            break
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
            if timing.ms <= budget_ms:
                trials[trial.choices] = again
                if (timing.ci95[1] if timing.ci95 else timing.ms) <= budget_ms:
                    return list(trials.values()), again
                likely = likely or again
                continue
            again, why = replace(again, state="infeasible"), f"took {milliseconds(timing.ms, budget_ms)} ms when measured again, over the budget"
        progress.say(f"#{list(trials).index(trial.choices) + 1} {why}: next best")
        trials[trial.choices] = again
    return list(trials.values()), likely
