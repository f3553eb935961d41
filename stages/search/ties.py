"""Layers that can shrink only together: a channel class loses filters when all layers that make it do (stages/graph/channels.py), so a candidate's slots are tied. Imports graph and schemes.

Both sides of a residual sum make one class, and so do a convolution and the squeeze-and-excitation gate that scales it. Drawn layer by layer, their filters are hardly ever pruned together: one
layer that isn't keeps the whole class, and the pruning of the others is void.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stages.graph import Graph, Layer, couplings
from stages.schemes import LayerScheme
from stages.schemes.masks import producers
from stages.search.space import Choices


class Ties:
    """The classes of a traced network, seen by the slots of a search."""

    def __init__(self, layers: Sequence[Layer], graph: Graph):
        slot = {layer.module: i for i, layer in enumerate(layers)}
        made = [producers(members) for members in couplings(graph)]
        self.slots = [tuple(slot[path] for path in paths if path in slot) for paths in made]  # of each class
        self.others = [tuple(path for path in paths if path not in slot) for paths in made]  # its layers without a slot

    def followers(self, choices: Choices) -> dict[str, LayerScheme]:
        """Layers without a slot that lose filters since all the others of their class do, and how: a gate has as many channels as what it scales."""
        found: dict[str, LayerScheme] = {}
        for slots, others in zip(self.slots, self.others, strict=True):
            chosen = [choices[i] for i in slots]
            if chosen and all(_filter(c) for c in chosen):
                found |= dict.fromkeys(others, max(chosen, key=lambda c: c.rate))  # type: ignore[attr-defined, arg-type]
        return found

    def settled(self, choices: Choices, slots: Sequence[Sequence[LayerScheme]], rng: np.random.Generator) -> Choices:
        """``choices`` in which of each class all layers lose filters, or none: all with the probability of the share that does. Those that are changed take what cuts their work about as much."""
        found = list(choices)
        for tied in self.slots:
            lose = [i for i in tied if _filter(found[i])]
            if not 0 < len(lose) < len(tied):
                continue
            able = all(any(_filter(c) for c in slots[i]) for i in tied)
            together = able and rng.random() < len(lose) / len(tied)
            rate = max(found[i].rate for i in lose)  # type: ignore[attr-defined]
            for i in set(tied) - set(lose) if together else lose:
                found[i] = min((c for c in slots[i] if c.filter_type == "keep" and _filter(c) == together), key=lambda c: abs(math.log(c.rate / rate)), default=found[i])
        return tuple(found)


def _filter(choice: object) -> bool:
    return isinstance(choice, LayerScheme) and choice.pruning == "filter"
