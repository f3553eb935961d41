"""The two halves of a task's training as hooks: learning beside frozen weights, then ADMM towards the task's part and a binary sharing mask. Imports torch, config, pruners, schemes and tasks of npas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.lifelong.gates import Gates
from stages.lifelong.stake import Stake
from stages.pruners.admm import Admm
from stages.schemes import Scheme
from stages.tasks import FitHooks


class Beside(FitHooks):
    """Trains the free weights with those of the earlier tasks in place, every one of which is used (none, where the task may use none)."""

    def __init__(self, module: nn.Module, stakes: Mapping[str, Stake]):
        self.module, self.gates = module, Gates(stakes)
        self.after_step(0, 0)

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """Undo what the optimiser did to taken weights."""
        self.gates.put({name: self.module.get_parameter(name) for name in self.gates.stakes})


class Claim(Admm):
    """ADMM whose set is "the taken units as they are, and in each group no more than so many of the free ones"; the gates go along, to their own set at the same rho.

    At the end of the ramp the largest free units are claimed and the gates become binary; the rest of the training retrains what was claimed, and all that is the task's alone.
    """

    def __init__(self, module: nn.Module, scheme: Scheme, stakes: Mapping[str, Stake], settings: SearchPruner, gate_lr: float):
        self.stakes, self.gates, self.gate_lr = dict(stakes), Gates(stakes), gate_lr
        self.claimed: dict[str, Tensor] = {}
        super().__init__(module, scheme, settings, {"claim": self.kept})
        self.put()

    def kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the projection keeps of these tensors."""
        return {name: self._spread(name, self.stakes[name].claim(tensors) | self.stakes[name].taken.to(tensor.device)) for name, tensor in tensors.items()}

    def before_step(self) -> None:
        """The gates follow the gradients of this batch."""
        if not self.claimed:
            self.gates.move(self.gradient, self.gate_lr)

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """A step of ADMM, then the taken weights as the gates have them."""
        super().after_step(step, total_steps)
        self.put()

    def attract(self) -> None:
        """Weights and gates towards their sets."""
        super().attract()
        self.gates.attract(self.rho)

    def start(self) -> None:
        """Begin a value of rho."""
        super().start()
        self.gates.start()

    def update(self) -> None:
        """A round of z and u, and of the gates' y and v."""
        super().update()
        self.gates.update()

    def hard_masks(self) -> dict[str, Tensor]:
        """Claim, and harden the gates; masks of the parts of which not all is used."""
        self.claimed = {name: stake.claim(self.weights((name,))).cpu() for name, stake in self.stakes.items()}
        self.gates.harden()
        return {name: self._spread(name, self.used(name)) for name in self.names}

    def used(self, name: str) -> Tensor:
        """(groups, units): what the task's network uses of a part."""
        return self.claimed[name] | self.gates.m[name].bool()

    def put(self) -> None:
        """The taken weights times their gates."""
        self.gates.put(self.weights(self.stakes))

    def state(self) -> dict[str, Any]:
        """ADMM's, the gates', and what was claimed."""
        return super().state() | {"gates": self.gates.state(), "claimed": dict(self.claimed)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.gates.load_state(state["gates"])
        self.claimed = dict(state["claimed"])

    def _spread(self, name: str, units: Tensor) -> Tensor:
        return self.stakes[name].units.spread(units, False)[name]
