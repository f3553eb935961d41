"""Sampler: the ask/tell protocol that every strategy shares, and what a reward is. Imports space only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from stages.search.space import Choices, Space, Trial

ATTEMPTS = 20  # proposals that may turn out to be known before a plain random draw, then the odometer, takes over


class Sampler(ABC):
    """Proposes candidates and learns from what became of them.

    The answers of ``ask`` depend on nothing but the constructor's arguments and the sequence of ask and tell calls, so replaying a journal reproduces them exactly: random
    numbers come from generators seeded by (seed, trials told, candidates pending), never from a generator that lives on.

    ``trials`` is the length of the schedule (how many trials are planned), which up to ``free`` candidates that were only measured don't shorten; both may be raised between two asks.
    """

    free = 0

    def __init__(self, space: Space, trials: int, budget_ms: float | None = None, seed: int = 0, *, alpha: float = 2.0):
        self.space = space
        self.trials = trials
        self.budget_ms = budget_ms
        self.seed = seed
        self.alpha = alpha
        self.told: dict[Choices, Trial] = {}
        self.pending: dict[Choices, None] = {}  # a dict keeps the order

    def ask(self, n: int = 1) -> tuple[Choices, ...]:
        """Up to ``n`` distinct candidates that were neither told nor asked before; fewer, then (), when the space is exhausted, or what the strategy would ever propose."""
        fresh = self._first(max(0, n))
        if missing := min(max(0, n) - len(fresh), self.space.size - len(self.told) - len(self.pending)):
            known, rng = {*self.told, *self.pending}, self.generator()
            fresh += self.space.settled(self.propose(missing, rng, known), known, rng)
            self.pending.update(dict.fromkeys(fresh))
        return tuple(fresh)

    def tell(self, trials: Iterable[Trial]) -> None:
        """Learn results, of asked candidates or of any others of the space; a second result for the same choices replaces the first."""
        for trial in trials:
            self.space.check(trial.choices)
            if self.budget_ms is not None and trial.state != "failed" and trial.latency_ms is None:
                raise ValueError("a budget is set, so a trial needs its latency")
            self.told[trial.choices] = trial
            self.pending.pop(trial.choices, None)

    def best(self) -> Trial | None:
        """The most accurate trial within the budget (the faster one of equals; one that was stopped early only where there is no other), or None."""
        feasible = [trial for trial in self.told.values() if trial.meets(self.budget_ms)]
        return min(feasible, key=rank, default=None)

    @abstractmethod
    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:
        """``n`` distinct candidates outside ``known`` (at least n are left in the space); fewer only from a strategy that never leaves a part of the space, when that is exhausted."""

    def preferences(self) -> list[dict[Hashable, float]] | None:
        """Per slot, what each choice is worth as the strategy has come to see it (its docstring says in which unit; more is better); None when it has no such view."""
        return None

    def generator(self) -> np.random.Generator:
        """The random numbers of this moment of the history."""
        return np.random.default_rng([self.seed, len(self.told), len(self.pending)])

    def progress(self) -> float:
        """Share of the planned trials that were asked or told, 0 to 1."""
        return min(1.0, (self.spent() + len(self.pending)) / max(1, self.trials))

    def spent(self) -> int:
        """Trials that count: all that were told, but for the first ``free`` that were too slow to be trained."""
        return len(self.told) - min(self.free, sum(trial.only_measured for trial in self.told.values()))

    def rewards(self) -> dict[Choices, float]:
        """Reward of every told candidate: V - alpha * max(0, h - H) / H (NPAS, section 5.2, relative to the budget).

        An infeasible candidate that was not trained counts with the lowest accuracy seen so far: its latency says that it is bad, and nothing makes it look better than what
        was trained. A failed one counts like the worst candidate so far, and at most 0, so an agent avoids it whatever the scale.
        """
        known = [t.accuracy for t in self.told.values() if t.accuracy is not None]
        floor = min(known, default=0.0)
        measured = {c: (floor if t.accuracy is None else t.accuracy) - self.penalty(t.latency_ms) for c, t in self.told.items() if t.state != "failed"}
        worst = min(0.0, min(measured.values(), default=0.0))
        return {c: measured.get(c, worst) for c in self.told}

    def penalty(self, latency_ms: float | None) -> float:
        """alpha times the share by which a latency exceeds the budget."""
        if self.budget_ms is None or latency_ms is None:
            return 0.0
        return self.alpha * max(0.0, latency_ms - self.budget_ms) / self.budget_ms

    def _first(self, n: int) -> list[Choices]:
        fresh = [c for c in self.space.first if c not in self.told and c not in self.pending][:n]
        self.pending.update(dict.fromkeys(fresh))
        return fresh


def rank(trial: Trial) -> tuple[bool, float, float]:
    """Sorts complete trials from the best: accuracy first, then latency; those whose training was stopped early last."""
    assert trial.accuracy is not None
    return trial.stopped, -trial.accuracy, trial.latency_ms or 0.0


def draw_distinct(n: int, space: Space, known: set[Choices], rng: np.random.Generator, draws: Sequence[Callable[[], Choices]]) -> list[Choices]:
    """``n`` distinct candidates outside ``known``: the i-th from ``draws[i % len(draws)]``, and when that keeps giving known ones, from the whole space."""
    fresh: dict[Choices, None] = {}
    seen = set(known)
    for i in range(n):
        tries = (draws[i % len(draws)]() for _ in range(ATTEMPTS))
        candidate = next((c for c in tries if c not in seen), None) or space.next_new(space.draw(rng), seen)
        if candidate is None:
            break
        seen.add(candidate)
        fresh[candidate] = None
    return list(fresh)
