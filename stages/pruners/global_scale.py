"""One threshold on normalisation scales for the whole network, found by bisection (CAT, Jin et al. 2021; the scales as importance: Liu et al. 2017). Imports pruners and schemes of npas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner, due, ramp_steps
from stages.pruners.norms import NormWatch
from stages.schemes import PATTERN_RATE, Scheme, apply_masks, make_masks
from stages.schemes.masks import pattern_mask, top_mask
from stages.schemes.units import Units, joined, units_of

HALVINGS = 60


def threshold(scores: Tensor, costs: Tensor, safe: Tensor, budget: float) -> float:
    """The least t, to float64 precision, at which what scores above t or is ``safe`` costs at most ``budget``; all are (units,). By bisection; what is safe alone must fit."""
    low, high = -1.0, float(scores.max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = float(costs[(scores > middle) | safe].sum()) <= budget
        low, high = (low, middle) if fits else (middle, high)
    return high


def flat(parts: list[Tensor]) -> Tensor:
    """The units of all layers in one row."""
    return torch.cat([part.flatten() for part in parts])


class GlobalScale(Pruner):
    """Over the ramp, one threshold rises through all layers, so that the weights that stay follow the cubic schedule; a group at the scheme's count loses no more, and in the end all are there.

    CAT lets the threshold alone decide how much each layer loses; here the scheme says that, and the threshold decides which units go and in which order across layers. A channel's score is
    the mean |gamma| of its class's batch norms (without any: its filters' norm over the layer's mean). The extension to the units of other schemes: the norm of a unit's weights, each times the
    |gamma| of its output channel if a batch norm follows, over the layer's root mean square, so that layers compare. Kernels of a pattern layer count so too, within their patterns, which are there from the start.
    """

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        make_masks(module, scheme)  # raises where the scheme doesn't fit
        self.units = units_of(module.state_dict(), scheme, kernels=True)
        self.norms = {f"{path}.weight" for members in scheme.coupled for path, member in members.items() if member.split()[0] == "batch_norm"}
        self.watch = NormWatch(module)
        self.pairs: dict[str, str] = {}

    def after_step(self, step: int, total_steps: int) -> None:
        """Raise the threshold."""
        if self.watch.pairs is not None:
            self.pairs = self.watch.pairs
        ramp = ramp_steps(total_steps, self.settings.prune_share)
        if self.units and due(step, ramp):
            apply_masks(self.module, self.masks)  # the optimiser has just moved pruned weights too
            self.set_masks(self.masks_at(step / ramp))

    def masks_at(self, progress: float) -> dict[str, Tensor]:
        """What stays when a share ``progress`` of the ramp is over; exactly the scheme's counts at 1."""
        inside = {name: mask for units in self.units if units.area > 1 for name, mask in self.patterns(units).items()}
        scores = [self.scores(units, inside.get(units.name)) for units in self.units]
        safe = [top_mask(score, units.kept) for units, score in zip(self.units, scores, strict=True)]
        costs = [units.sums({name: torch.ones(shape, device=score.device) for name, shape in units.shapes.items()}) for units, score in zip(self.units, scores, strict=True)]
        total, least = sum(float(c.sum()) for c in costs), sum(float(c[s].sum()) for c, s in zip(costs, safe, strict=True))
        budget = least + (total - least) * (1 - progress) ** 3
        line = threshold(flat(scores), flat(costs), flat(safe), budget)
        parts = (units.spread(kept | (score > line) if progress < 1 else kept, True) for units, score, kept in zip(self.units, scores, safe, strict=True))
        masks = joined(parts, torch.logical_and)
        return {name: mask & inside[name] if name in inside else mask for name, mask in masks.items()}

    def scores(self, units: Units, inside: Tensor | None) -> Tensor:
        """The score of each unit, (groups, units)."""
        tensors = self.module.state_dict()
        if not units.block:
            scales = [tensors[name][rows].double().abs() for name, rows in units.rows.items() if name in self.norms]
            if scales:
                return torch.stack(scales).mean(0)[None]
            norms = units.norms(tensors)
            return norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)
        norms = units.norms({units.name: self.scaled(units.name) if inside is None else self.scaled(units.name) * inside})
        return norms / norms.square().mean().sqrt().clamp_min(torch.finfo(norms.dtype).tiny)

    def scaled(self, name: str) -> Tensor:
        """The weights of a layer, each times the |gamma| of its output channel."""
        tensors = self.module.state_dict()
        weight, norm = tensors[name].double(), self.pairs.get(name.removesuffix(".weight"))
        return weight if norm is None else weight * tensors[f"{norm}.weight"].double().abs().view(-1, *[1] * (weight.ndim - 1))

    def patterns(self, units: Units) -> dict[str, Tensor]:
        """The mask of a pattern layer in which every kernel stays."""
        scores = self.scaled(units.name).square()
        return {units.name: pattern_mask(scores, PATTERN_RATE, units.block, scores)}

    def state(self) -> dict[str, Any]:
        """Masks and the pairs of layer and batch norm."""
        return super().state() | {"pairs": dict(self.pairs)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        super().load_state(state)
        self.pairs = dict(state["pairs"])
        self.watch.stop()
