"""Differentiable annealing indicator search (DAIS, Guan et al. 2020): gates between 0 and 1 are learnt with the weights and annealed to binary. Imports pruners and schemes of npas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, beside, ramp_steps
from stages.pruners.gradual import cubic_rate
from stages.schemes import Scheme, make_masks
from stages.schemes.masks import top_mask
from stages.schemes.units import Units, joined, units_of

TEMPERATURE = 0.01  # of the gates at the end of the ramp; 1 at its start. Indicators have a standard deviation of about 1
MOMENTUM = 0.9
HALVINGS = 40  # of the bisection for the offset


def budgeted(indicators: Tensor, temperature: float, share: float) -> Tensor:
    """Gates sigmoid((a - b) / temperature) of (groups, units), with b of each group such that their mean is ``share``: by bisection, since the mean falls as b rises."""
    reach = 40 * temperature  # beyond it a float64 gate is 0 or 1
    low, high = indicators.amin(1, keepdim=True) - reach, indicators.amax(1, keepdim=True) + reach
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = torch.sigmoid((indicators - middle) / temperature).mean(1, keepdim=True) > share
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.sigmoid((indicators - (low + high) / 2) / temperature)


def budgeted_slope(gates: Tensor, temperature: float, slope: Tensor) -> Tensor:
    """The gradient with respect to the indicators, from ``slope`` with respect to the gates, when ``budgeted`` holds their mean: each indicator that rises lowers the other gates."""
    local = gates * (1 - gates) / temperature
    common = (local * slope).sum(1, keepdim=True) / local.sum(1, keepdim=True).clamp_min(torch.finfo(local.dtype).tiny)
    return local * (slope - common)


class Dais(Pruner):
    """Every unit of the scheme (channel, position) has an indicator a; the network computes with weights times gates sigmoid((a - b) / t), and a learns by the gates' gradient on the training batches.

    t falls from 1 to TEMPERATURE over the ramp, so that the gates end binary. DAIS keeps to its budget by a regulariser on the FLOPs of the whole network; here the scheme gives each group its own
    count, so the regulariser's multiplier b is solved for in each group, and the gates' mean follows the cubic schedule of ``gradual`` to just that count. Indicators and weights are
    learnt on the same batches (one level; DAIS has two). Indicators start as the standardised norms of the units.

    In a pattern layer the indicators are those of positions (a centre's, a corner's, ... shared by the block), and patterns are what holds the most of their gates at the end.
    Between steps the live weights are the gated ones, so that evaluation sees what the gates do; the ungated are kept here.
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        self.names = tuple(make_masks(module, scheme))
        self.units = units_of(module.state_dict(), scheme)
        self.latent = {name: weight.clone() for name, weight in self.weights(self.names).items()}
        self.indicators = [self.initial(units) for units in self.units]
        self.velocities = [torch.zeros_like(a) for a in self.indicators]
        self.gates = [torch.ones_like(a) for a in self.indicators]
        self.temperature = 1.0

    def initial(self, units: Units) -> Tensor:
        """The standardised norms of each group."""
        norms = units.norms(self.latent)
        return (norms - norms.mean(1, keepdim=True)) / norms.std(1, keepdim=True, unbiased=False).clamp_min(torch.finfo(norms.dtype).tiny)

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the indicators; put the ungated weights in place, with their gradient, for the optimiser."""
        if self.masks:
            return
        weights = self.weights(self.names)
        self.latent = beside(self.latent, weights)
        for index, units in enumerate(self.units):
            gradients = {name: self.gradient(name) for name in units.shapes}
            slope = units.sums({name: gradients[name] * self.latent[name] for name in units.shapes})
            gates = self.gates[index].to(slope.device)
            self.move(index, budgeted_slope(gates, self.temperature, slope))
            for name, gate in units.spread(gates, 1).items():
                gradients[name].mul_(gate)
        for name, weight in weights.items():
            weight.copy_(self.latent[name])

    def move(self, index: int, slope: Tensor) -> None:
        """A step of gradient descent with momentum, its length set by ``dais_lr`` for the layer as a whole: the loss's own scale says nothing about how far indicators should go."""
        length = slope.square().mean().sqrt()
        if length > 0:
            self.velocities[index] = MOMENTUM * self.velocities[index].to(slope.device) + (1 - MOMENTUM) * slope / length
            self.indicators[index] = self.indicators[index].to(slope.device) - self.settings.dais_lr * self.velocities[index]

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """Gate the weights anew, a little colder; at the end of the ramp the largest indicators stay."""
        if self.masks:
            return
        ramp, weights = ramp_steps(total_steps, self.settings.prune_share), self.weights(self.names)
        if step == ramp:
            self.set_masks(self.binary())
            self.latent, self.indicators, self.velocities, self.gates = {}, [], [], []
            return
        self.latent = {name: weight.clone() for name, weight in weights.items()}
        self.temperature = TEMPERATURE ** (step / ramp)
        for index, units in enumerate(self.units):
            a = self.indicators[index]
            self.gates[index] = budgeted(a, self.temperature, 1 / cubic_rate(a.shape[1] / units.kept, step / ramp))
            for name, gate in units.spread(self.gates[index], 1).items():
                weights[name].mul_(gate.to(weights[name].device))

    def binary(self) -> dict[str, Tensor]:
        """The masks in which each group keeps its largest indicators; in a pattern layer, the patterns and kernels that hold the most of them."""
        shares = (units.shares(torch.sigmoid(a) + top_mask(a, units.kept)) for units, a in zip(self.units, self.indicators, strict=True))
        return make_masks(self.module, self.scheme, joined(shares, torch.add))

    def state(self) -> dict[str, Any]:
        """Masks, ungated weights, indicators with their velocities, gates and temperature."""
        own = {"latent": self.latent, "indicators": self.indicators, "velocities": self.velocities, "gates": self.gates, "temperature": self.temperature}
        return super().state() | own

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.latent, self.temperature = dict(state["latent"]), state["temperature"]
        self.indicators, self.velocities, self.gates = list(state["indicators"]), list(state["velocities"]), list(state["gates"])
