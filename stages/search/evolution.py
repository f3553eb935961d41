"""evolution: regularised evolution, in which the oldest die, not the worst (Real et al. 2019, algorithm 1). Imports sampler only."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices


class Evolution(Sampler):
    """Each candidate is a mutation of the best of ``evolution_sample`` drawn members; the population is the ``evolution_population`` youngest trials.

    The first members are random. A mutation gives one slot another choice. Defaults are a fifth of the paper's (100 and 25): it ran 20,000 trials, npas runs 24 to 200.
    Failed trials never join.
    """

    def __init__(self, *args, evolution_population: int = 20, evolution_sample: int = 5, **options):
        super().__init__(*args, **options)
        self.population_size, self.sample = evolution_population, evolution_sample

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        alive, rewards = self.population(), self.rewards()
        if len(self.told) < self.population_size or not alive:
            return draw_distinct(n, self.space, known, rng, [lambda: self.space.draw(rng)])

        def child() -> Choices:
            drawn = rng.choice(len(alive), size=min(self.sample, len(alive)), replace=False)
            return self.mutate(max((alive[i] for i in drawn), key=lambda c: rewards[c]), rng)

        return draw_distinct(n, self.space, known, rng, [child])

    def population(self) -> list[Choices]:
        """The youngest trials that didn't fail, the oldest of them first."""
        return [c for c, trial in self.told.items() if trial.state != "failed"][-self.population_size :]

    def mutate(self, parent: Choices, rng: np.random.Generator) -> Choices:
        """``parent`` with another choice in one slot (of those that have another)."""
        free = [i for i, slot in enumerate(self.space.slots) if len(slot) > 1]
        if not free:
            return parent
        slot = free[int(rng.integers(len(free)))]
        return (*parent[:slot], self.space.other(slot, parent[slot], rng), *parent[slot + 1 :])

    def preferences(self) -> list[dict[Hashable, float]]:
        """Share of the population that carries each choice."""
        alive = self.population()
        return [{c: sum(member[i] == c for member in alive) / max(1, len(alive)) for c in slot} for i, slot in enumerate(self.space.slots)]
