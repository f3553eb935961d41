"""What a pruning algorithm is, and the schedule that the gradual ones share. Imports torch, config, schemes and tasks of npas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.schemes import Scheme
from stages.tasks import FitHooks, Task

UPDATES = 64  # most changes of a schedule between dense and pruned; a short run changes at every step


class Pruner(FitHooks):
    """An algorithm that prunes ``module`` to ``scheme`` while ``fit`` trains it. One file each, listed in PRUNERS; tests/unit/test_pruners_conformance.py holds for all.

    It is made from the dense module, prepared, and given to ``fit(module, task, masks=pruner.masks, hooks=pruner)``. When training ends, ``masks`` has exactly the scheme's structure and every weight
    outside is exactly 0. It draws no random numbers, and ``state`` with the module's weights is all that a resumed run needs. Shapes never change.
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        self.module, self.scheme, self.settings = module, scheme, settings
        self.masks: dict[str, Tensor] = {}  # fit applies them after every step; an algorithm changes them in place

    def prepare(self, task: Task) -> None:
        """Called once before ``fit``, for algorithms that look at training images first. Must be deterministic: a run that is continued is prepared again, and then takes its weights from its checkpoint."""

    def weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The live parameters of these names, to be changed in place."""
        return {name: self.module.get_parameter(name).detach() for name in names}

    def gradient(self, name: str) -> Tensor:
        """The gradient of a parameter; 0 where the batch didn't reach it."""
        parameter = self.module.get_parameter(name)
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def set_masks(self, masks: dict[str, Tensor]) -> None:
        """Other masks from now on, in the very dict that ``fit`` holds."""
        self.masks.clear()
        self.masks.update(masks)

    def state(self) -> dict[str, Any]:
        """The masks of this moment."""
        return {"masks": dict(self.masks)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.set_masks(state["masks"])


def beside(values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``values`` on the devices of the weights of their names: ``fit`` moves a module after its pruner was made, and checkpoints come back on the CPU."""
    return {name: value.to(weights[name].device) for name, value in values.items()}


def ramp_steps(total_steps: int, share: float) -> int:
    """Steps from the dense network to the full scheme; the rest of the training retrains under fixed masks. At least 1."""
    return min(total_steps, max(1, round(share * total_steps)))


def due(step: int, ramp: int) -> bool:
    """Whether the schedule changes something at ``step`` (from 1): UPDATES times, evenly, and always at the ramp's last step."""
    return step == ramp or (step < ramp and step % max(1, ramp // UPDATES) == 0)
