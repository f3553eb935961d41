"""uniform: the same pruning everywhere, as hard as the budget demands: the baseline that a searched mixture must beat. Imports ladder only."""

from __future__ import annotations

from stages.search.ladder import Ladders
from stages.search.space import Choices, Space


class Uniform(Ladders):
    """Bisects each of ``space.uniform``; a space without them has one ladder: every slot at the same share of its length."""

    def __init__(self, space: Space, *args, **options):
        super().__init__(space, *args, ladders=space.uniform or (level(space),), **options)


def level(space: Space) -> list[Choices]:
    """Candidates whose slots all stand at the same place between their first and their last choice, from the first to the last.

    >>> level(Space([("a", "b", "c"), (1, 2)]))
    [('a', 1), ('b', 1), ('c', 2)]
    """
    longest = max((len(slot) for slot in space.slots), default=1)
    return [tuple(slot[i * (len(slot) - 1) // max(1, longest - 1)] for slot in space.slots) for i in range(longest)]
