"""What a search leaves behind, as plain data: rows of trials.json and history.csv, and metrics. Imports loop, scheme_space and trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.errors import InfeasibleBudget
from stages.search.lines import milliseconds
from stages.search.loop import Outcome
from stages.search.sampler import Sampler
from stages.search.scheme_space import SchemeSpace
from stages.search.space import Trial
from stages.search.trials import pareto, to_row


def trial_rows(trials: Sequence[Trial], space: SchemeSpace) -> list[dict[str, Any]]:
    """One row a trial, in order, with its number, whether no other is both faster and more accurate, and the label of every layer's choice."""
    return [
        {"trial": i, **to_row(t), "pareto": front, "choices": space.named(t.choices)}
        for i, (t, front) in enumerate(zip(trials, pareto(trials), strict=True), 1)
    ]


def preferences(sampler: Sampler | None, space: SchemeSpace) -> dict[str, dict[str, float]] | None:
    """What the strategy has come to think of each layer's choices: module path -> label -> worth; None where it has no such view."""
    worth = sampler.preferences() if sampler else None
    if worth is None:
        return None
    return {layer.module: {choice.label: float(value) for choice, value in slot.items()} for layer, slot in zip(space.layers, worth, strict=True)}  # type: ignore[attr-defined]


def history_rows(trials: Sequence[Trial], budget_ms: float) -> list[dict[str, Any]]:
    """One row a trial: accuracy, latency, state, and the best accuracy within the budget so far."""
    rows: list[dict[str, Any]] = []
    best: float | None = None
    for i, t in enumerate(trials, 1):
        if t.meets(budget_ms) and t.accuracy is not None and not t.stopped:
            best = t.accuracy if best is None else max(best, t.accuracy)
        rows.append({"trial": i, "accuracy": t.accuracy, "latency_ms": t.latency_ms, "state": t.state, "best": best})
    return rows


def metrics(outcome: Outcome, dense_ms: float, budget_ms: float) -> dict[str, Any]:
    """The search in figures; those of the best candidate are None when the budget is infeasible."""
    best = outcome.best
    return {
        "accuracy": best.accuracy if best else None, "latency_ms": best.latency_ms if best else None, "dense_ms": dense_ms, "budget_ms": budget_ms,
        "speedup": dense_ms / best.latency_ms if best and best.latency_ms else None, "fastest_ms": outcome.fastest_ms, "trials": len(outcome.trials),
        "feasible": sum(t.meets(budget_ms) for t in outcome.trials), "failed": sum(t.state == "failed" for t in outcome.trials), "stopped": sum(t.stopped for t in outcome.trials), "pareto": sum(pareto(outcome.trials)),
    }  # fmt: skip


def infeasible(outcome: Outcome, budget_ms: float) -> InfeasibleBudget:
    """The error that says what can be reached."""
    fastest = outcome.fastest_ms
    reached = "nothing could be measured" if fastest is None else f"the fastest candidate takes {milliseconds(fastest, budget_ms)} ms"
    hint = "Allow higher search_scheme.rates, or more search_scheme.trials."
    if fastest is not None and fastest > budget_ms:
        hint = f"Try --budget-ms {fastest * 1.05:.3g}, or allow higher search_scheme.rates."
    return InfeasibleBudget(f"No scheme meets the budget of {milliseconds(budget_ms, budget_ms)} ms: {reached}.", hint, fastest)
