"""random: independent draws, the baseline that any other strategy must beat. Imports sampler only."""

from __future__ import annotations

import numpy as np

from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices


class Random(Sampler):
    """Draws every slot on its own, by the weights of the space."""

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        return draw_distinct(n, self.space, known, rng, [lambda: self.space.draw(rng)])
