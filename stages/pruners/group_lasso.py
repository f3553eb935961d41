"""Reweighted group lasso: units are drawn to 0 while the network trains, then pruned (Candes et al. 2008, section 2; on blocks of weights: Ma et al. 2020). Imports pruners and schemes of npas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, ramp_steps
from stages.schemes import Scheme, make_masks
from stages.schemes.units import Units, units_of

REWEIGHTINGS = 8  # times over the ramp that the weights of the norms are set anew (Candes et al. gain little after a few)
EPSILON = 0.1  # keeps the weight of a vanished unit finite, as a share of the norm at the scheme's boundary (Candes et al., section 2.2: a bit below the least norm that should stay)
SHARE = 0.25  # of the boundary's norm that strength 1 would take from it over the ramp, were its weight not raised as it shrinks: its square falls by twice that share


def shrink_factors(norms: Tensor, thresholds: Tensor) -> Tensor:
    """The proximal map of sum_u thresholds_u |w_u|, as the factor of each unit: max(0, 1 - threshold / norm) (Yuan and Lin 2006); 0 for a unit that is 0."""
    return (1 - thresholds / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)


def boundaries(norms: Tensor, kept: int) -> Tensor:
    """(groups, 1): the least norm that a group keeps under its scheme."""
    return norms.sort(dim=1, descending=True).values[:, kept - 1 : kept]


class GroupLasso(Pruner):
    """Adds strength * sum_u a_u |w_u| over the units of the scheme, a_u = 1 / (|w_u| + eps), reset REWEIGHTINGS times; at the end of the ramp the largest units stay, and are retrained.

    The penalty acts beside the optimiser's step (as its proximal map), not through the loss, as in ``admm``. Its scale comes from the scheme: with ``lasso_strength`` 1, a unit on the boundary
    between what stays and what goes would lose three tenths of its norm by the end of the ramp if the loss didn't care, one of two thirds of that norm would vanish, and one of three times it
    would lose a thirtieth. At 4 much of what should stay vanishes (ResNet-20 at 3x, 3 epochs: 70.8 instead of 84.1 %). Pattern layers are penalised at both
    levels, positions in kernels (each shared by a block) and whole kernels: a tree, whose proximal map is one after the other (Jenatton et al. 2011). A channel is all that goes with it.
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        tensors = module.state_dict()
        make_masks(module, scheme)  # raises where the scheme doesn't fit
        kernels = tuple(units for units in units_of(tensors, scheme, kernels=True) if units.area > 1)
        self.units: tuple[Units, ...] = (*units_of(tensors, scheme), *kernels)
        self.bounds = [boundaries(units.norms(tensors), units.kept) for units in self.units]
        self.pulls: list[Tensor] = []  # bounds^2 a_u: what a whole ramp takes from each norm

    def after_step(self, step: int, total_steps: int) -> None:
        """Shrink; reweight when it is due; prune at the end of the ramp."""
        if self.masks:
            return
        ramp = ramp_steps(total_steps, self.settings.prune_share)
        if not self.pulls or step % max(1, ramp // REWEIGHTINGS) == 0:
            self.pulls = [self.reweighted(units, bound) for units, bound in zip(self.units, self.bounds, strict=True)]
        for units, pull in zip(self.units, self.pulls, strict=True):
            self.shrink(units, SHARE * self.settings.lasso_strength / ramp * pull)
        if step == ramp:
            self.set_masks(make_masks(self.module, self.scheme, self.squares()))

    def reweighted(self, units: Units, bound: Tensor) -> Tensor:
        """The weight of each norm, in units of the boundary's: bound (1 + eps) bound / (norm + eps bound), so that a unit on the boundary has its norm."""
        norms = units.norms(self.weights(units.shapes))
        bound = bound.to(norms.device)
        return bound * (1 + EPSILON) * bound / (norms + EPSILON * bound).clamp_min(torch.finfo(norms.dtype).tiny)

    def shrink(self, units: Units, thresholds: Tensor) -> None:
        """One proximal step on the live weights."""
        weights = self.weights(units.shapes)
        norms = units.norms(weights)
        for name, factor in units.spread(shrink_factors(norms, thresholds.to(norms.device)), 1).items():
            weights[name].mul_(factor)

    def squares(self) -> Mapping[str, Tensor]:
        """The squares of what is penalised: a channel is judged by all that was drawn to 0 with it, for behind a batch norm the size of a filter alone says little."""
        names = {name for units in self.units for name in units.shapes}
        return {name: weight.double().square() for name, weight in self.weights(names).items()}

    def state(self) -> dict[str, Any]:
        """Masks, the boundary norms of the dense network, and the present pulls."""
        return super().state() | {"bounds": list(self.bounds), "pulls": list(self.pulls)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.bounds, self.pulls = list(state["bounds"]), list(state["pulls"])
