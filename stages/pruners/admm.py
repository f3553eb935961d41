"""ADMM: train towards the scheme, then prune hard and retrain under the masks (Zhang et al. 2018, section 3; YOLObile, Cai et al. 2021, section 4). Imports pruners/base and schemes of npas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, ramp_steps
from stages.schemes import Scheme, make_masks
from stages.schemes.masks import masks_of

UPDATES = 4  # parts of each value of rho: u sums up what W has not followed yet, so updating it at every step of a short run overshoots


class Admm(Pruner):
    """Minimises loss(W) with W in the set of the scheme, by splitting: ``z`` is in the set, ``u`` is the scaled dual variable, and rho / 2 |W - z + u|^2 draws them together.

    z becomes the projection of W + u onto the set (make_masks applied to it) and u grows by W - z, UPDATES times per value of rho. ``rho`` takes ``admm_stages`` values, each ten times the
    last, evenly over the first ``prune_share`` of the training; each begins with u = 0, as in YOLObile's code: at a small rho u outgrows the weights and would choose the wrong ones.
    Then W is pruned as it is, and retrained under the masks. Under filter pruning all that the masks of a channel class cover (depthwise weights, biases, batch norms) takes part.

    The penalty acts beside the optimiser's step (as its proximal map, stable for any rho), not through the loss: AdamW divides gradients by their size, so a rho in the loss
    would decide whose sign counts rather than how far W moves; weight decay is decoupled for the same reason (Loshchilov and Hutter 2019).
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        self.names = tuple(make_masks(module, scheme))
        self.stage = 0
        self.z: dict[str, Tensor] = {}
        self.u: dict[str, Tensor] = {}
        self.start()

    @property
    def rho(self) -> float:
        """The penalty of the present stage."""
        return self.settings.admm_rho * 10.0**self.stage

    def weights(self) -> dict[str, Tensor]:
        """The live parameters that the scheme prunes, by name."""
        return {name: self.module.get_parameter(name).detach() for name in self.names}

    def projected(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The point of the scheme's set that keeps the largest weights: what make_masks excludes becomes 0."""
        masks = masks_of(tensors, self.scheme)
        return {name: tensors[name] * masks[name] for name in self.names}

    def after_step(self, step: int, total_steps: int) -> None:
        """Draw W towards z - u; update z, u and rho when they are due; prune hard at the end of the ramp."""
        if self.masks:
            return
        ramp, stages = ramp_steps(total_steps, self.settings.prune_share), self.settings.admm_stages
        self.attract()
        stage = stages * step // ramp
        if step == ramp:
            self.set_masks(make_masks(self.module, self.scheme))
            self.z, self.u = {}, {}
        elif stage != self.stage:
            self.stage = stage
            self.start()
        elif step % max(1, ramp // (stages * UPDATES)) == 0:
            self.update()

    def attract(self) -> None:
        """The proximal map of the penalty: W becomes (W + rho (z - u)) / (1 + rho)."""
        for name, weight in self.weights().items():
            self.z[name], self.u[name] = self.z[name].to(weight.device), self.u[name].to(weight.device)
            weight.lerp_(self.z[name] - self.u[name], self.rho / (1 + self.rho))

    def start(self) -> None:
        """Begin a value of rho: z = projection of W, u = 0."""
        weights = self.weights()
        self.z = self.projected(weights)
        self.u = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def update(self) -> None:
        """One round: z = projection of W + u, u = u + W - z."""
        weights = self.weights()
        self.z = self.projected({name: weight + self.u[name] for name, weight in weights.items()})
        self.u = {name: self.u[name] + weight - self.z[name] for name, weight in weights.items()}

    def state(self) -> dict[str, Any]:
        """Masks, z, u and the stage of rho."""
        return super().state() | {"z": dict(self.z), "u": dict(self.u), "stage": self.stage}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.z, self.u, self.stage = dict(state["z"]), dict(state["u"]), state["stage"]
