"""Measure choices until time is up: the most expensive layers first, each search resumable, every measured point in the journal before the next begins."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.compiler import select
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.target import Target
from stages.compiler.tuning import database
from stages.compiler.tuning.harness import Harness, Times
from stages.compiler.tuning.search import ENUMERATE, explore
from stages.compiler.tuning.signature import signature
from stages.progress import Progress, bar

HOPELESS = 1.5  # times the cost of the rule's best by its model: not measured
OTHER_RULE = 2.0  # a rule whose best is expected to be slower than another's by more than this isn't measured
OF_EACH = 6  # of a rule's choices are measured before more of another rule's
LEAST_GAIN = 0.01  # less than that is noise: the model's choice stays
FINALISTS = 4
HEAVY = 64 << 20  # bytes of weights: such a layer takes as long as it takes to read them, whatever the tile
ROOM = 256 << 20  # bytes of packed weights that are timed together
WRONG = 1e6  # the cost of a candidate that computes something else
_ROUND, _FINAL = (30, 0.5), (100, 1.0)  # at most so many rounds and seconds for a batch


@dataclass(frozen=True)
class Verdict:
    """The best choice for a signature, how many times faster it is than the model's choice, and how many candidates were measured for that."""

    signature: str
    label: str
    gain: float
    measured: int


def tune_layers(layers: Sequence[tuple[Placed, float]], target: Target, minutes: float, progress: Progress, most: int = ENUMERATE) -> list[Verdict]:
    """Tune ``layers`` (with the milliseconds that each takes now) for at most about ``minutes``; the verdicts that were reached. What has a verdict of this machine already is left alone."""
    end = time.monotonic() + minutes * 60
    file = database.path(target)
    database.start(file, target)
    waiting = _by_cost(layers, target, database.read(file).verdicts)
    found = []
    with bar(progress, "tuning", len(waiting)):
        for placed in waiting:
            verdict = tune_layer(placed, target, lambda: time.monotonic() < end, most)
            if verdict is None:
                break
            found.append(verdict)
            progress.advance(f"{verdict.signature}: {verdict.label}, {verdict.gain:.2f}x as fast as untuned, {verdict.measured} measured")
    return found


def _by_cost(layers: Sequence[tuple[Placed, float]], target: Target, known: Mapping[str, Any]) -> list[Placed]:
    """One layer for each signature that can be tuned and isn't, the most expensive first; equal signatures count together."""
    costs: dict[str, float] = {}
    first: dict[str, Placed] = {}
    for placed, milliseconds in layers:
        name = signature(placed)
        weight = placed.step.weight
        if name is not None and weight is not None and weight.nbytes <= HEAVY and (name not in known or select.decode(known[name]) is None):
            costs[name] = costs.get(name, 0.0) + milliseconds
            first.setdefault(name, placed)
    ordered = [first[name] for name in sorted(costs, key=lambda n: (-costs[n], n))]
    return [placed for placed in ordered if select.untuned(placed, target).choice is not None]


def tune_layer(placed: Placed, target: Target, go_on: Callable[[], bool], most: int = ENUMERATE) -> Verdict | None:
    """Search the choices of one layer and write the verdict; None when ``go_on`` said no before the end. What was measured then counts when the search is taken up again."""
    name, file = signature(placed), database.path(target)
    assert name is not None
    reference = select.untuned(placed, target)
    assert reference.choice is not None
    ranked = [c for c in _ranked(placed, target) if c != reference.choice]
    before = database.read(file).points.get(name, {})
    known = {c: before[text] for c in ranked if (text := database.key(_plain(c))) in before}

    def measure(batch: Sequence[Any]) -> dict[Any, float]:
        costs: dict[Any, float] = {}
        for part in _parts(batch, placed):
            found, times = _race(placed, reference, part, target, *_ROUND)
            rows = [{"kind": "point", "signature": name, "choice": _plain(c), "cost": found[c], **_figures(t)} for c, t in zip(part, times[1:], strict=True)]
            database.append(file, *rows)
            costs |= found
        return costs

    costs: dict[Any, float] = {}
    if not go_on():
        return None
    for costs in explore(ranked, measure, known, most):  # noqa: B007
        if not go_on():
            return None
    finalists = sorted(costs, key=lambda c: costs[c])[:FINALISTS]
    final, times = _race(placed, reference, finalists, target, *_FINAL)
    best = min(finalists, key=lambda c: final[c], default=None)
    if best is None or final[best] > 1 - LEAST_GAIN:
        best, gain, row = reference.choice, 1.0, times[0] if times else None
    else:
        gain, row = 1 / final[best], times[1 + finalists.index(best)]
    untuned = {"untuned": _plain(reference.choice), "gain": round(gain, 4), "measured": len(costs)}
    database.append(file, {"kind": "verdict", "signature": name, "choice": _plain(best), **untuned, **(_figures(row) if row else {})})
    return Verdict(name, select.chosen(placed, best, target).tile, gain, len(costs))


def _ranked(placed: Placed, target: Target) -> list[Any]:
    """The choices worth measuring, the best expected first; but the first ones of each rule before all others: models of different rules err by different amounts."""
    rules = list(select.choices(placed, target))
    best = min(min(cost for cost, _ in options) for options in rules)
    kept: list[tuple[bool, float, Any]] = []
    for options in rules:
        lowest = min(cost for cost, _ in options)
        if lowest <= OTHER_RULE * best:
            ordered = sorted(((cost, choice) for cost, choice in options if cost <= HOPELESS * lowest), key=lambda found: found[0])
            kept += [(rank >= OF_EACH, cost, choice) for rank, (cost, choice) in enumerate(ordered)]
    return [choice for _, _, choice in sorted(kept, key=lambda found: found[:2])]


def _parts(batch: Sequence[Any], placed: Placed) -> list[Sequence[Any]]:
    """``batch`` in parts whose packed weights together take about ROOM; Winograd's are up to 7 times the plain ones."""
    assert placed.step.weight is not None
    size = max(1, min(len(batch), ROOM // (4 * placed.step.weight.nbytes)))
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def _race(placed: Placed, reference: Kernel, batch: Sequence[Any], target: Target, rounds: int, seconds: float) -> tuple[dict[Any, float], list[Times]]:
    """Cost of each choice of ``batch`` relative to ``reference``, timed in the same rounds; and the Times, those of ``reference`` first."""
    if not batch:
        return {}, []
    kernels = [reference, *(select.chosen(placed, c, target) for c in batch)]
    with Harness(placed, kernels, target) as harness:
        times = harness.time(range(len(kernels)), rounds, seconds)
    costs = {}
    for choice, found in zip(batch, times[1:], strict=True):
        ratio = found.ratio(times[0]) * choice.handicap / reference.choice.handicap
        costs[choice] = ratio if found.right else WRONG
    return costs, times


def _plain(choice: Any) -> database.Plain:
    return database.plain(select.rule_of(choice), choice)


def _figures(times: Times) -> dict[str, float]:
    low, middle = min(times.samples), statistics.median(times.samples)
    return {"min_us": round(low, 2), "median_us": round(middle, 2), "rounds": len(times.samples), "error": float(f"{times.error:.2g}")}
