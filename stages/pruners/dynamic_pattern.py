"""Patterns chosen during training (ClickTrain, Zhang et al. 2021, dynamic pattern generation and selection), on the units of any scheme. Imports pruners and schemes of npas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, beside, ramp_steps
from stages.pruners.group_lasso import boundaries, shrink_factors
from stages.pruners.importance import Importance
from stages.schemes import Scheme, make_masks
from stages.schemes.units import units_of

OBSERVE = 0.25  # share of the ramp before the first choice, in which importance gathers
CHOICES = 16  # times over the ramp that the choice is made anew


class DynamicPattern(Pruner):
    """What would stay is chosen again and again by importance (w g)^2; a group lasso presses on the losing parts; at the end of the ramp the last choice becomes the hard mask.

    In a pattern layer the choice is which patterns the layer has, which of them each kernel takes and which kernels stay; a losing part is what lies outside the pattern of a kernel, or a whole kernel.
    Under the other schemes the choice is which positions or channels stay, and a losing part is one of those that don't. A part that wins again later just stops being pressed.
    ``lasso_strength`` 1 is a pull that would end, over the ramp, a part as large as the least unit that stays.
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        tensors = module.state_dict()
        self.importance = Importance(self, make_masks(module, scheme))
        self.units = units_of(tensors, scheme, kernels=True)
        self.bounds = [boundaries(units.norms(tensors), units.kept) for units in self.units]
        self.chosen: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Accumulate while there is something to decide."""
        if not self.masks:
            self.importance.observe()

    def after_step(self, step: int, total_steps: int) -> None:
        """Choose when it is due, press, and prune at the end of the ramp."""
        if self.masks:
            return
        ramp = ramp_steps(total_steps, self.settings.prune_share)
        if step == ramp or (step >= OBSERVE * ramp and (not self.chosen or step % max(1, ramp // CHOICES) == 0)):
            self.chosen = make_masks(self.module, self.scheme, self.importance.values)
        if step == ramp:
            self.set_masks(self.chosen)
            self.chosen, self.importance.values = {}, {}
        elif self.chosen:
            self.press(self.settings.lasso_strength / ramp)

    def press(self, share: float) -> None:
        """One proximal step of the group lasso on the losing parts."""
        for units, bound in zip(self.units, self.bounds, strict=True):
            weights = self.weights(units.shapes)
            chosen = beside({name: self.chosen[name] for name in units.shapes}, weights)
            norms = units.norms({name: weight.masked_fill(chosen[name], 0) for name, weight in weights.items()})
            factors = units.spread(shrink_factors(norms, share * bound.to(norms.device)), 1)
            for name, weight in weights.items():
                weight.mul_(torch.where(chosen[name], 1.0, factors[name]))

    def state(self) -> dict[str, Any]:
        """Masks, the average, the present choice and the boundary norms of the dense network."""
        return super().state() | {"importance": dict(self.importance.values), "chosen": dict(self.chosen), "bounds": list(self.bounds)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.importance.values, self.chosen, self.bounds = dict(state["importance"]), dict(state["chosen"]), list(state["bounds"])
