"""What the search says on the screen. Imports errors, sampler and space."""

from __future__ import annotations

import math

from stages.errors import NpasError
from stages.search.sampler import Sampler
from stages.search.space import Trial


def trial_line(sampler: Sampler, trial: Trial, budget_ms: float, trials: int, metric: str) -> str:
    """``trial 17/30  top1 96.4  0.623 ms <= 0.700  best #12 96.6``; ``trial 21 (17/30)`` when four of the trials don't count."""
    best, order = sampler.best(), list(sampler.told)
    last = f"best #{order.index(best.choices) + 1} {100 * (best.accuracy or 0):.1f}" if best else "best none"
    number, counted = order.index(trial.choices) + 1, sampler.spent()
    head = f"trial {number}/{trials}" if number == counted else f"trial {number} ({counted}/{trials})"
    if trial.state == "failed":
        return f"{head}  failed: {trial.error}  {last}"
    ms, budget = milliseconds(trial.latency_ms or 0.0, budget_ms), milliseconds(budget_ms, budget_ms)
    score = f"{metric} {100 * trial.accuracy:.1f}" if trial.accuracy is not None else "not trained"
    early = f" (stopped after {trial.curve[-1][0]:.3g} epochs)" if trial.stopped and trial.curve else ""
    return f"{head}  {score}{early}  {ms} ms {'>' if trial.state == 'infeasible' else '<='} {budget}  {last}"


def milliseconds(value: float, budget_ms: float) -> str:
    """A latency with the decimals that its budget deserves: 6.62 beside 6.70, 0.623 beside 0.700, 0.0312 beside 0.0400."""
    return f"{value:.{max(2, 2 - math.floor(math.log10(budget_ms))) if budget_ms > 0 else 2}f}"


def describe(error: BaseException) -> str:
    """One line about an exception, for a row and the screen."""
    text = error.message if isinstance(error, NpasError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]
