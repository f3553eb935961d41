"""npas and bo: Gaussian processes with a Weisfeiler-Lehman kernel screen a pool of proposals by expected improvement (NPAS, section 5.2; NAS-BOWL). Imports errors, ilp, sampler, surrogate, wl.

Two processes, not one on the reward as in NPAS: one on accuracy, one on the logarithm of latency. A reward mixes a kink of size alpha with accuracies that differ by a
percent, and a process standardised over both sees the kink alone; the latency is measured anyway, also of what isn't trained. What is ranked is the expected improvement
times the probability of meeting the budget (constrained Bayesian optimisation, Gardner et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from stages.errors import UsageError
from stages.search.ilp import IntegerProgram
from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices, Space, Trial
from stages.search.surrogate import Surrogate
from stages.search.wl import Numbered, Numbering, wl_counts, wl_histograms

NOISE = (1e-5, 1e-2)  # least and most variance of standardised targets (NAS-BOWL)


class Screened(Sampler):
    """A proposer's pool, screened: of ``pool`` candidates those that promise the most are asked.

    A share of the pool, ``screen_neighbours``, are variations of good trials (NAS-BOWL's mutations, and crossings of two), the rest the proposer's: with more slots than trials an
    independent draw seldom comes near the budget, while a step from something that does is a real proposal. The first ``initial`` trials aren't screened:
    they are the proposer's or, with ``warm_start="ilp"``, the integer program's on the estimates that the space brings (LANA).
    Failed trials never reach the Gaussian processes.
    """

    def __init__(
        self, proposer: Callable[..., Sampler], *args: Any, alpha: float = 2.0, pool: int = 100, initial: int = 6, wl_depth: int = 3,
        screen_neighbours: float = 0.5, screen_parents: int = 5, screen_steps: float = 0.75, screen_xi: float = 0.0, screen_noise: float = 0.01,
        warm_start: str = "none", **options: Any,
    ):  # fmt: skip
        super().__init__(*args, alpha=alpha)
        self.proposer = proposer(*args, alpha=alpha, **options)
        self.proposer.told, self.proposer.pending = self.told, self.pending  # one history, seen by both
        self.pool, self.initial, self.wl_depth = pool, initial, wl_depth
        self.neighbours, self.best_parents, self.steps, self.xi, self.noise = screen_neighbours, screen_parents, screen_steps, screen_xi, screen_noise
        self.warm = IntegerProgram(*args, alpha=alpha) if warm_start == "ilp" else None
        if self.warm is not None:
            if self.space.costs is None:
                raise UsageError("A warm start by the integer program needs a space with estimates of each choice's loss and latency.", "Give Space(..., costs=Costs(...)), or set warm_start to none.")
            self.warm.told, self.warm.pending = self.told, self.pending
        self._numbering, self._numbered = Numbering(), dict[Choices, Numbered]()

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        self.proposer.trials, self.proposer.free = self.trials, self.free
        measured = [trial for trial in self.told.values() if trial.state != "failed"]
        if len(self.told) < self.initial or not measured:
            return (self.warm or self.proposer).propose(n, rng, known)
        pool = self.candidates(max(n, self.pool), rng, known)
        gains = promise(self.space, measured, pool, self.budget_ms, self.wl_depth, self.xi, self.noise, self.numbered)
        return [pool[i] for i in np.argsort(-gains, kind="stable")[:n]]

    def candidates(self, size: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:
        """The pool: the proposer's share, then neighbours."""
        size = min(size, self.space.size - len(known))
        parents = self.parents()
        own = self.proposer.propose(size - round(self.neighbours * size), rng, known)
        varied = draw_distinct(size - len(own), self.space, {*known, *own}, rng, [lambda: neighbour(self.space, parents, rng, self.steps)])
        return self.space.settled(own + varied, known, rng)  # before they are judged

    def parents(self) -> list[Choices]:
        """The trials with the best rewards, and half as many that miss the budget by the least: a crossing of the two kinds lies near the budget."""
        rewards = {c: r for c, r in self.rewards().items() if self.told[c].state != "failed"}
        best = sorted(rewards, key=lambda c: -rewards[c])[: self.best_parents]
        above = sorted((c for c in rewards if self.penalty(self.told[c].latency_ms) > 0), key=lambda c: self.told[c].latency_ms or 0.0)
        return best + [c for c in above[: self.best_parents // 2] if c not in best]

    def numbered(self, choices: Choices) -> Numbered:
        """The WL histograms of a candidate, made once."""
        if choices not in self._numbered:
            self._numbered[choices] = self._numbering(wl_histograms(self.space.graph(choices), self.wl_depth))
        return self._numbered[choices]

    def preferences(self) -> list[dict[Hashable, float]] | None:
        """The proposer's."""
        return self.proposer.preferences()


def neighbour(space: Space, parents: Sequence[Choices], rng: np.random.Generator, step_share: float = 0.75) -> Choices:
    """One of ``parents``, every second time crossed with another, in which one slot, and each further one with half the probability, is changed.

    ``step_share`` of the changes are small steps, the others draws from the whole slot.
    """
    first, second = (parents[i] for i in rng.integers(len(parents), size=2))
    share = rng.random() if rng.random() < 0.5 else 1.0
    child = [a if rng.random() < share else b for a, b in zip(first, second, strict=True)]
    for slot in (int(i) for i in rng.permutation(len(child))[: rng.geometric(0.5)]):
        child[slot] = space.step(slot, child[slot], rng) if rng.random() < step_share else space.draw_slot(slot, rng)
    return tuple(child)


def promise(
    space: Space, measured: Sequence[Trial], pool: Sequence[Choices], budget_ms: float | None, wl_depth: int, xi: float = 0.0, noise: float = NOISE[1],
    numbered: Callable[[Choices], Numbered] | None = None,
) -> np.ndarray:  # fmt: skip
    """For each candidate of ``pool``: expected improvement of accuracy over the best feasible trial, times the probability to meet the budget.

    Without a feasible trial the probability alone counts: the first aim is to get under the budget.
    """
    if numbered is None:
        numbering = Numbering()
        numbered = lambda choices: numbering(wl_histograms(space.graph(choices), wl_depth))  # noqa: E731
    counts = wl_counts([numbered(choices) for choices in (*(t.choices for t in measured), *pool)])
    rows, bounds = range(len(measured), len(measured) + len(pool)), (min(NOISE[0], noise), noise)
    trained = [i for i, t in enumerate(measured) if t.accuracy is not None]
    feasible = np.ones(len(pool))
    if budget_ms is not None:
        model = Surrogate(counts, range(len(measured)), [np.log(t.latency_ms or np.nan) for t in measured], wl_depth, bounds)
        feasible = model.probability_below(np.log(budget_ms), rows)
    meeting = [i for i in trained if measured[i].meets(budget_ms)]
    if not meeting:
        return feasible
    model = Surrogate(counts, trained, [-(measured[i].accuracy or 0.0) for i in trained], wl_depth, bounds)
    return feasible * model.improvement(meeting, rows, xi)
