"""What the task's gradients say about each weight: first-order Taylor importance, averaged over training batches. Imports pruners/base only of npas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stages.pruners.base import Pruner, beside

MOMENTUM = 0.9  # of the average over batches (Molchanov et al. 2019, section 3.3, average over pruning steps alike)


class Importance:
    """(w g)^2 of each weight, the squared change of the loss when it goes (Molchanov et al. 2019, section 3.1), as a moving average over batches.

    A set of weights counts as the sum of its members, which is the second of the two ways that the paper gives and the one that is defined for every scheme.
    """

    def __init__(self, pruner: Pruner, names: Iterable[str]):
        self.pruner, self.names = pruner, tuple(names)
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self) -> None:
        """Take the present batch in: to be called between the gradients and the optimiser's step."""
        weights = self.pruner.weights(self.names)
        seen = {name: (weight * self.pruner.gradient(name)).square() for name, weight in weights.items()}
        if self.values:
            self.values = beside(self.values, weights)
            for name in self.names:
                self.values[name].lerp_(seen[name], 1 - MOMENTUM)
        else:
            self.values = seen

    def forget(self, masks: Mapping[str, Tensor]) -> None:
        """What was pruned is worth nothing from now on."""
        for name, mask in masks.items():
            self.values[name] = self.values[name] * mask.to(self.values[name].device)
