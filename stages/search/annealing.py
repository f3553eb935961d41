"""anneal: simulated annealing with experience guidance (AutoCompress, Liu et al. 2020, section 4; constants of NNI's SimulatedAnnealingPruner). Imports sampler, additive."""

from __future__ import annotations

import math

import numpy as np

from stages.search.additive import Additive
from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices

CHAIN = 2  # tells the generator of the acceptances from that of the proposals
ENOUGH = 4  # latencies known before they guide
GUIDED = 10  # perturbations of which the first one within the budget, as far as known, is taken


class Annealing(Sampler):
    """A walk: each candidate perturbs the state; a better trial becomes the state, a worse one with probability exp(-loss / temperature).

    The temperature falls from ``anneal_start`` to ``anneal_stop`` by the factor ``anneal_rate``, in steps that are spread over the planned trials. NNI compares it with accuracies of 0..1, so that
    everything is accepted; here a loss is taken in standard deviations of the rewards so far, and in units of the starting temperature: one deviation is accepted
    with probability 1/e at the start and 1/e^5 at the end (100 to 20).

    A perturbation changes each slot with probability ``anneal_perturb`` times temperature / start, at least one, by a step. Experience guides it (AutoCompress): steps and draws follow the weights of the space,
    and of several perturbations the first one is taken whose latency, by what was measured so far, meets the budget.
    """

    def __init__(self, *args, anneal_start: float = 100.0, anneal_stop: float = 20.0, anneal_rate: float = 0.9, anneal_perturb: float = 0.35, **options):
        super().__init__(*args, **options)
        self.start, self.stop, self.rate, self.perturb = anneal_start, anneal_stop, anneal_rate, anneal_perturb

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        state = self.state()
        if state is None:
            return draw_distinct(n, self.space, known, rng, [lambda: self.space.draw(rng)])
        latency, share = self.experience(), self.perturb * self.temperature(self.progress()) / self.start

        def walk() -> Choices:
            tries: list[Choices] = []
            for _ in range(GUIDED if latency else 1):
                tries.append(self.step(state, share, rng))
                if latency and latency(tries[-1]) <= (self.budget_ms or math.inf):
                    return tries[-1]
            return min(tries, key=latency) if latency else tries[0]

        return draw_distinct(n, self.space, known, rng, [walk])

    def temperature(self, progress: float) -> float:
        """Of a share of the planned trials, 0 to 1.

        >>> from stages.search import Space, make_sampler
        >>> [round(make_sampler("anneal", Space([(1, 2)]), 10).temperature(p), 1) for p in (0.0, 0.5, 1.0)]
        [100.0, 43.0, 20.0]
        """
        steps = max(1, round(math.log(self.stop / self.start) / math.log(self.rate))) if self.stop < self.start and self.rate < 1 else 1
        return max(self.stop, self.start * self.rate ** int(progress * (steps + 1)))

    def state(self) -> Choices | None:
        """Where the walk is after all that was told; None before the first measured trial."""
        rewards, here, seen = self.rewards(), None, []
        for i, (choices, trial) in enumerate(self.told.items()):
            if trial.state == "failed":
                continue
            seen.append(rewards[choices])
            if here is None or self.accepts(rewards[here] - rewards[choices], float(np.std(seen)), i):
                here = choices
        return here

    def accepts(self, loss: float, spread: float, number: int) -> bool:
        """Whether trial ``number``, worse by ``loss``, becomes the state; ``spread`` is the deviation of the rewards so far."""
        if loss <= 0:
            return True
        temperature = self.temperature(min(1.0, number / max(1, self.trials))) / self.start
        chance = math.exp(-loss / (spread * temperature)) if spread > 0 else 0.0
        return bool(np.random.default_rng([self.seed, number, CHAIN, CHAIN]).random() < chance)

    def step(self, state: Choices, share: float, rng: np.random.Generator) -> Choices:
        """``state`` with each slot changed with probability ``share``, at least one of them."""
        chosen = rng.random(len(state)) < share
        if len(state) and not chosen.any():
            chosen[rng.integers(len(state))] = True
        return tuple(self.space.step(i, c, rng) if change else c for i, (c, change) in enumerate(zip(state, chosen, strict=True)))

    def experience(self) -> Additive | None:
        """The latency that what was measured lets expect; None without a budget, or before ENOUGH trials."""
        measured = [t for t in self.told.values() if t.latency_ms is not None]
        if self.budget_ms is None or len(measured) < ENOUGH:
            return None
        costs = self.space.costs
        return Additive(self.space, [t.choices for t in measured], [t.latency_ms or 0.0 for t in measured], costs.latency_ms if costs else None)
