"""Gradual magnitude pruning with a cubic schedule (Zhu and Gupta 2017, equation 1). Imports pruners/base and schemes of npas."""

from __future__ import annotations

from dataclasses import replace

from stages.pruners.base import Pruner, due, ramp_steps
from stages.schemes import PATTERN_RATE, LayerScheme, Scheme, apply_masks, make_masks


def cubic_rate(rate: float, progress: float) -> float:
    """The rate when a share ``progress`` (0..1) of the ramp is over: sparsity grows as s (1 - (1 - progress)^3) towards s = 1 - 1 / rate."""
    sparsity = (1 - 1 / rate) * (1 - (1 - progress) ** 3)
    return 1 / (1 - sparsity)


def scheme_at(scheme: Scheme, progress: float) -> Scheme:
    """The scheme at lower rates, exactly ``scheme`` at the end. Patterns are there from the start (their lowest rate is 2.25); kernels vanish on the schedule."""
    if progress >= 1:
        return scheme
    return Scheme({path: _at(layer, progress) for path, layer in scheme.layers.items()}, scheme.coupled)


def _at(layer: LayerScheme, progress: float) -> LayerScheme:
    low = PATTERN_RATE if layer.pruning == "pattern" else 1.0
    return replace(layer, rate=max(low, cubic_rate(layer.rate, progress)))


class Gradual(Pruner):
    """Prunes a little more at each of many steps, so that the weights that stay adapt meanwhile. What was pruned stays pruned: zeros score lowest."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Raise the rates."""
        ramp = ramp_steps(total_steps, self.settings.prune_share)
        if due(step, ramp):
            apply_masks(self.module, self.masks)  # the optimiser has just moved pruned weights too
            self.set_masks(make_masks(self.module, scheme_at(self.scheme, step / ramp)))
