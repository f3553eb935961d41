"""Bisection of candidates that get faster from rung to rung, towards the budget: what uniform and global-magnitude share. Imports sampler only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.search.sampler import Sampler
from stages.search.space import Choices, Space


class Ladders(Sampler):
    """Proposes the rungs of one or more ladders, and nothing else: it ends before the space is exhausted.

    Each ladder is bisected until the mildest rung within the budget is known; several candidates of one ask divide what is open evenly. Without a budget
    that is the first rung. Rungs that failed are stepped over.
    """

    def __init__(self, space: Space, *args, ladders: Sequence[Sequence[Choices]], **options):
        super().__init__(space, *args, **options)
        self.ladders = [tuple(dict.fromkeys(space.check(rung) for rung in ladder)) for ladder in ladders]

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        fresh: list[Choices] = []
        while len(fresh) < n:
            found = [rung for ladder in self.ladders if (rung := self.next_rung(ladder, {*known, *fresh})) is not None]
            if not found:
                break
            fresh += list(dict.fromkeys(found))[: n - len(fresh)]
        return fresh

    def next_rung(self, ladder: Sequence[Choices], known: set[Choices]) -> Choices | None:
        """The rung that divides the open part of ``ladder`` best; None when nothing is open."""
        slow = [i for i, rung in enumerate(ladder) if self.fits(rung) is False]
        low = max(slow, default=-1)
        high = min((i for i, rung in enumerate(ladder) if i > low and self.fits(rung)), default=len(ladder))
        taken = [low, high, *(i for i in range(low + 1, high) if ladder[i] in known)]
        open_rungs = [i for i in range(low + 1, high) if ladder[i] not in known]
        return ladder[max(open_rungs, key=lambda i: min(abs(i - t) for t in taken))] if open_rungs else None

    def fits(self, rung: Choices) -> bool | None:
        """Whether it was measured within the budget; None when that isn't known."""
        trial = self.told.get(rung)
        if trial is None or trial.state == "failed":
            return None
        return self.budget_ms is None or (trial.latency_ms is not None and trial.latency_ms <= self.budget_ms)
