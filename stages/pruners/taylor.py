"""First-order Taylor importance, pruned on a schedule (Molchanov et al. 2019, "Importance estimation for neural network pruning"). Imports pruners and schemes of npas."""

from __future__ import annotations

from typing import Any

from torch import nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, due, ramp_steps
from stages.pruners.gradual import scheme_at
from stages.pruners.importance import Importance
from stages.schemes import Scheme, apply_masks, make_masks


class Taylor(Pruner):
    """What changes the loss least goes first: (w g)^2 summed over each unit and averaged over the batches so far, on the cubic schedule of ``gradual``.

    A channel counts with all that goes with it (filters, depthwise kernels, biases, batch norms).
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        self.importance = Importance(self, make_masks(module, scheme))

    def before_step(self) -> None:
        """Accumulate while there is something to decide."""
        self.importance.observe()

    def after_step(self, step: int, total_steps: int) -> None:
        """Raise the rates."""
        ramp = ramp_steps(total_steps, self.settings.prune_share)
        if due(step, ramp):
            apply_masks(self.module, self.masks)  # the optimiser has just moved pruned weights too
            self.set_masks(make_masks(self.module, scheme_at(self.scheme, step / ramp), self.importance.values))
            self.importance.forget(self.masks)

    def state(self) -> dict[str, Any]:
        """Masks and the average."""
        return super().state() | {"importance": dict(self.importance.values)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.importance.values = dict(state["importance"])
