"""Successive halving as plain arithmetic: who trains for how long, and who goes on (Jamieson and Talwalkar 2016; Hyperband's inner loop, Li et al. 2018). Imports errors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.errors import UsageError


@dataclass(frozen=True)
class Rung:
    """``entries`` compete in ``epochs`` epochs each."""

    entries: int
    epochs: float

    @property
    def cost(self) -> float:
        """Epochs of the whole rung."""
        return self.entries * self.epochs


def plan(entries: int, first: float, eta: int, last: float, budget: float = 0.0) -> tuple[Rung, ...]:
    """The rungs of a race: ``first`` epochs for all, then ``eta`` times as many epochs for the best one in ``eta`` (rounded down), until one is left.

    >>> plan(81, 1, 3, 300)
    (Rung(entries=81, epochs=1), Rung(entries=27, epochs=3), Rung(entries=9, epochs=9), Rung(entries=3, epochs=27))

    No rung is longer than ``last``, the epochs of the final training; one of that length is the last one, for its best run is that training. ``budget`` > 0: rungs that would bring
    the sum of all epochs above it are left out; UsageError when the first one does.
    """
    rungs: list[Rung] = []
    while entries > 1 and not (rungs and rungs[-1].epochs >= last):
        rung = Rung(entries, min(first * eta ** len(rungs), last))
        if budget and sum(r.cost for r in rungs) + rung.cost > budget:
            if not rungs:
                raise UsageError(f"The first rung of the race takes {rung.cost:g} epochs ({entries} entries of {rung.epochs:g}); its budget is {budget:g}.",
                                 "Raise search_pruner.race_budget, or race fewer algorithms or learning rates.")  # fmt: skip
            break
        rungs.append(rung)
        entries = max(1, entries // eta)
    return tuple(rungs)


def best(scores: Sequence[float], count: int) -> list[int]:
    """Positions of the ``count`` highest scores, the earlier one of equals, in their order."""
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])
