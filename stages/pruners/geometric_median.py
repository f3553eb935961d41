"""Filter pruning via geometric median (FPGM, He et al. 2019), extended to units. Imports pruners and schemes of npas."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pruners.base import Pruner, due, ramp_steps
from stages.pruners.gradual import scheme_at
from stages.schemes import apply_masks, make_masks
from stages.schemes.masks import producers
from stages.schemes.units import Units, joined, units_of


def distances(vectors: Tensor) -> Tensor:
    """(groups, units, d) -> (groups, units): the sum of each unit's distances to the others of its group, over those that are not 0 themselves; a unit that is 0 has 0.

    The geometric median is the point with the least such sum (FPGM, equation 7), so the smallest are the ones that the others can best stand in for.
    """
    rows = []
    for group in vectors.detach().double():  # one at a time: (units, units) is large for wide layers
        alive = group.any(1)
        pairs = torch.cdist(group, group, compute_mode="donot_use_mm_for_euclid_dist")  # exact: equal units have distance 0
        rows.append((pairs * alive).sum(1) * alive)
    return torch.stack(rows)


class GeometricMedian(Pruner):
    """What lies nearest to the geometric median of its like goes first, on the cubic schedule of ``gradual``: it is replaceable, not small.

    On channels this is FPGM, distances of a class's layers added. Its extension to the units of a group: under block-punched and block-based, each position is the vector of its weights in all filters of the
    block, and is compared with the other positions of that block. Under pattern, whole kernels are compared so; each keeps the pattern of its largest weights, for a pattern is no unit that another replaces.
    """

    def after_step(self, step: int, total_steps: int) -> None:
        """Raise the rates."""
        ramp = ramp_steps(total_steps, self.settings.prune_share)
        if due(step, ramp):
            apply_masks(self.module, self.masks)  # the optimiser has just moved pruned weights too
            self.set_masks(make_masks(self.module, scheme_at(self.scheme, step / ramp), self.scores()))

    def scores(self) -> dict[str, Tensor]:
        """The worth of each weight."""
        tensors = self.module.state_dict()
        makers = {f"{path}.weight" for members in self.scheme.coupled for path in producers(members)}

        def worth(units: Units) -> dict[str, Tensor]:
            if units.area > 1:
                return self.kernel_scores(units, tensors[units.name])
            names = [name for name in units.shapes if units.block or name in makers]
            return units.shares(torch.stack([distances(units.vectors(name, tensors[name])) for name in names]).sum(0))

        return joined(map(worth, units_of(tensors, self.scheme, kernels=True)), torch.add)

    @staticmethod
    def kernel_scores(units: Units, weight: Tensor) -> dict[str, Tensor]:
        """A kernel's distance sum, dealt out by the squares of its weights."""
        squares = {units.name: weight.detach().double().square()}
        energy = units.sums(squares)
        per_energy = distances(units.vectors(units.name, weight)) / energy.clamp_min(torch.finfo(energy.dtype).tiny)
        return {units.name: squares[units.name] * units.spread(per_energy, 0)[units.name]}
