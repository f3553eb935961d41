"""ADMM: train towards the scheme, then prune hard and retrain under the masks (Zhang et al. 2018, section 3; YOLObile, Cai et al. 2021, section 4). Imports pruners/base and schemes of npas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, beside, ramp_steps
from stages.schemes import PATTERN_RATE, Scheme, make_masks
from stages.schemes.masks import masks_of, top_mask
from stages.schemes.units import Units, units_of

UPDATES = 4  # parts of each value of rho: u sums up what W has not followed yet, so updating it at every step of a short run overshoots
Tensors = dict[str, Tensor]
Masks = Callable[[Mapping[str, Tensor]], Tensors]  # tensors -> what the nearest point of a set keeps of them


def constraint_sets(module: nn.Module, scheme: Scheme) -> dict[str, Masks]:
    """The sets that the weights are to be in, each as the masks of its projection.

    "scheme" is what all layers but those of patterns must be like. A pattern layer has two: "pattern", every kernel in one of the layer's patterns, and "connectivity", only as many kernels as
    the scheme keeps (the extended ADMM of PatDNN, Niu et al. 2020, section 4.2; PCONV, Ma et al. 2020).
    """
    patterned = {path: layer for path, layer in scheme.layers.items() if layer.pruning == "pattern"}
    others = Scheme({path: layer for path, layer in scheme.layers.items() if path not in patterned}, scheme.coupled)
    patterns = Scheme({path: replace(layer, rate=PATTERN_RATE) for path, layer in patterned.items()})
    kernels = units_of(module.state_dict(), Scheme(patterned), kernels=True)
    sets: dict[str, Masks] = {"scheme": lambda tensors: masks_of(tensors, others)}
    if patterned:
        sets |= {"pattern": lambda tensors: masks_of(tensors, patterns), "connectivity": lambda tensors: connectivity(kernels, tensors)}
    return sets


def connectivity(kernels: tuple[Units, ...], tensors: Mapping[str, Tensor]) -> Tensors:
    """Masks that keep, in each block of filters, the kernels of the largest L2 norm whole."""
    return {units.name: units.spread(top_mask(units.norms(tensors), units.kept), True)[units.name] for units in kernels}


class Admm(Pruner):
    """Minimises loss(W) with W in every set of ``constraint_sets``, by splitting: each ``z`` is in its set, ``u`` is its scaled dual variable, and rho / 2 |W - z + u|^2 draws them together.

    z becomes the projection of W + u onto the set and u grows by W - z, UPDATES times per value of rho. ``rho`` takes ``admm_stages`` values, each ten times the
    last, evenly over the first ``prune_share`` of the training; each begins with u = 0, as in YOLObile's code: at a small rho u outgrows the weights and would choose the wrong ones.
    Then W is pruned as it is, and retrained under the masks. Under filter pruning all that the masks of a channel class cover (depthwise weights, biases, batch norms) takes part.

    The penalty acts beside the optimiser's step (as its proximal map, stable for any rho), not through the loss: AdamW divides gradients by their size, so a rho in the loss
    would decide whose sign counts rather than how far W moves; weight decay is decoupled for the same reason (Loshchilov and Hutter 2019).
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner, sets: Mapping[str, Masks] | None = None):
        super().__init__(module, scheme, settings)
        self.names = tuple(make_masks(module, scheme))
        self.sets = constraint_sets(module, scheme) if sets is None else dict(sets)
        self.stage = 0
        self.z: dict[str, Tensors] = {}
        self.u: dict[str, Tensors] = {}
        self.start()

    @property
    def rho(self) -> float:
        """The penalty of the present stage."""
        return self.settings.admm_rho * 10.0**self.stage

    def after_step(self, step: int, total_steps: int) -> None:
        """Draw W towards z - u; update z, u and rho when they are due; prune hard at the end of the ramp."""
        if self.masks:
            return
        ramp, stages = ramp_steps(total_steps, self.settings.prune_share), self.settings.admm_stages
        self.attract()
        stage = stages * step // ramp
        if step == ramp:
            self.set_masks(self.hard_masks())
            self.z, self.u = {}, {}
        elif stage != self.stage:
            self.stage = stage
            self.start()
        elif step % max(1, ramp // (stages * UPDATES)) == 0:
            self.update()

    def hard_masks(self) -> Tensors:
        """The masks that W is pruned with at the end of the ramp."""
        return make_masks(self.module, self.scheme)

    def attract(self) -> None:
        """The proximal map of the penalties: W becomes (W + rho sum (z - u)) / (1 + rho n), over the n sets that a tensor is to be in."""
        for name, weight in self.weights(self.names).items():
            targets = [(self.z[key][name] - self.u[key][name]).to(weight.device) for key in self.z if name in self.z[key]]
            weight.add_(torch.stack(targets).sum(0), alpha=self.rho).div_(1 + self.rho * len(targets))

    def start(self) -> None:
        """Begin a value of rho: z = projection of W, u = 0."""
        self.project({key: {} for key in self.sets})

    def update(self) -> None:
        """One round: z = projection of W + u, u = u + W - z."""
        weights = self.weights(self.names)
        self.project({key: beside(self.u[key], weights) for key in self.sets})

    def project(self, duals: Mapping[str, Tensors]) -> None:
        """z = projection of W + u onto its set, u = u + W - z; or u = 0 for what ``duals`` lacks."""
        weights = self.weights(self.names)
        for key, masks in self.sets.items():
            dual = duals[key]
            moved = {name: weight + dual[name] if name in dual else weight for name, weight in weights.items()}
            self.z[key] = {name: moved[name] * mask for name, mask in masks(moved).items()}
            self.u[key] = {name: moved[name] - z if name in dual else torch.zeros_like(z) for name, z in self.z[key].items()}

    def state(self) -> dict[str, Any]:
        """Masks, z, u and the stage of rho."""
        return super().state() | {"z": {key: dict(z) for key, z in self.z.items()}, "u": {key: dict(u) for key, u in self.u.items()}, "stage": self.stage}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.z, self.u, self.stage = {key: dict(z) for key, z in state["z"].items()}, {key: dict(u) for key, u in state["u"].items()}, state["stage"]
