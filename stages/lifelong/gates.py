"""Selective sharing: which of the earlier tasks' units a task uses, learnt with its weights (LPS, Wang et al. 2020). Imports torch and schemes of npas.

Each taken unit has a gate m; the task computes with m times the frozen weight. m is relaxed to real numbers and follows its gradient, while ADMM draws it to the set of binary gates with
as many ones in each group as the task may use: y is in that set, v the scaled dual variable, rho / 2 |m - y + v|^2 the penalty, as for weights (pruners/admm.py). Here m stays between 0 and 1 (the
published code leaves it free) and one gate serves a unit rather than a weight, so that what a task uses is block-punched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stages.lifelong.stake import Stake
from stages.schemes.masks import top_mask

MOMENTUM = 0.9


class Gates:
    """The gates of every part, (groups, units) in float64; 1 at the start, and 0 in units that aren't taken. Gates of a part of which all or nothing may be used are fixed."""

    def __init__(self, stakes: Mapping[str, Stake]):
        self.stakes = dict(stakes)
        self.m = {name: stake.taken.double() * bool(stake.reused) for name, stake in stakes.items()}
        self.learnt = [name for name, stake in stakes.items() if 0 < stake.reused < int(stake.taken[0].sum())]
        self.velocity = {name: torch.zeros_like(self.m[name]) for name in self.learnt}
        self.y: dict[str, Tensor] = {}
        self.v: dict[str, Tensor] = {}
        self.start()

    def move(self, gradient: Callable[[str], Tensor], rate: float) -> None:
        """A step down the gradient, dL/dm = sum over the unit of dL/dW times the frozen weight, with momentum; its length is ``rate`` for the layer as a whole."""
        for name in self.learnt:
            g, stake = gradient(name), self.stakes[name]
            slope = stake.units.sums({name: g * stake.values.to(g.device)}).cpu()
            length = slope[stake.taken].square().mean().sqrt()
            if length > 0:
                self.velocity[name] = MOMENTUM * self.velocity[name] + (1 - MOMENTUM) * slope / length
                self._set(name, self.m[name] - rate * self.velocity[name])

    def attract(self, rho: float) -> None:
        """The proximal map of the penalty."""
        for name in self.learnt:
            self._set(name, (self.m[name] + rho * (self.y[name] - self.v[name])) / (1 + rho))

    def start(self) -> None:
        """Begin a value of rho: y = projection of m, v = 0."""
        self.v = {name: torch.zeros_like(self.m[name]) for name in self.learnt}
        self.y = {name: self.nearest(name, self.m[name]) for name in self.learnt}

    def update(self) -> None:
        """One round: y = projection of m + v, v = v + m - y."""
        for name in self.learnt:
            moved = self.m[name] + self.v[name]
            self.y[name] = self.nearest(name, moved)
            self.v[name] = moved - self.y[name]

    def harden(self) -> None:
        """Binary gates from now on, the nearest ones."""
        for name in self.learnt:
            self.m[name] = self.nearest(name, self.m[name])
        self.learnt = []

    def nearest(self, name: str, values: Tensor) -> Tensor:
        """The projection: 1 for the largest of the taken units, as many as the task may use."""
        stake = self.stakes[name]
        return top_mask(values.masked_fill(~stake.taken, -torch.inf), stake.reused).double()

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Write the taken units into live weights: frozen value times gate; a gate of 1 leaves every bit as it is."""
        for name, stake in self.stakes.items():
            gate = stake.units.spread(self.m[name], 0)[name].to(stake.values.dtype)
            live = weights[name]
            live.copy_(torch.where(stake.where.to(live.device), (stake.values * gate).to(live.device), live))

    def _set(self, name: str, values: Tensor) -> None:
        self.m[name] = values.clamp(0, 1) * self.stakes[name].taken

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"m": dict(self.m), "learnt": list(self.learnt), "velocity": dict(self.velocity), "y": dict(self.y), "v": dict(self.v)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        self.m, self.learnt, self.velocity, self.y, self.v = dict(state["m"]), list(state["learnt"]), dict(state["velocity"]), dict(state["y"]), dict(state["v"])
