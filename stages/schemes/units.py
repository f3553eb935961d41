"""The units of a scheme: the sets of weights that stay or go together, and how values pass between units and weights. Imports torch, masks and rules.

Values of units are (groups, units), each group keeps ``kept`` of its units; values of weights have the weights' shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.schemes.masks import blocked, class_rows, filter_classes, group_sums, spread
from stages.schemes.rules import kept_count, kept_units
from stages.schemes.scheme import PATTERN_WEIGHTS, Scheme


@dataclass(frozen=True)
class Units:
    """The units of one pruned layer: positions shared by ``block`` filters and ``channels`` input channels, or whole kernels of ``area`` positions; with block 0, the channels of a class.

    Example: the 3x3 convolution (64, 32, 3, 3) in blocks of 8 has 8 groups of 288 units of 8 weights; a class of 16 channels has one group of 16, each a filter with its bias and batch norm.
    """

    shapes: Mapping[str, torch.Size]  # the tensors that the units are cut from; one, unless it is a class
    kept: int
    block: int = 0
    channels: int = 1
    area: int = 1
    rows: Mapping[str, slice | list[int]] = field(default_factory=dict)  # of a class: the rows of each tensor that are its channels; the others are neither read nor changed

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """The sum over each unit, float64."""
        if self.block:
            sums = group_sums(values[self.name], self.block, self.channels)
            return sums.view(len(sums), -1, self.area).sum(-1)
        own = [values[name].detach()[rows].double() for name, rows in self.rows.items()]
        return torch.stack([part.reshape(len(part), -1).sum(1) for part in own]).sum(0)[None]

    def norms(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The L2 norm of each unit."""
        return self.sums({name: tensors[name].detach().double().square() for name in self.shapes}).sqrt()

    def spread(self, units: Tensor, other: float) -> dict[str, Tensor]:
        """Each weight gets the value of its unit, and ``other`` in the rows of a class's tensors that aren't the class's; the dtype stays."""
        if self.block:
            like = torch.empty(self.shapes[self.name], device="meta")
            return {self.name: spread(units.repeat_interleave(self.area, 1), like, self.block, self.channels)}
        values = {name: torch.full(shape, other, dtype=units.dtype, device=units.device) for name, shape in self.shapes.items()}
        for name, value in values.items():
            value[self.rows[name]] = units.view(-1, *[1] * (value.ndim - 1))
        return values

    def shares(self, units: Tensor) -> dict[str, Tensor]:
        """Each weight gets an equal share of its unit's value, so that ``sums`` gives it back: scores of units as scores of weights."""
        ones = {name: torch.ones(shape, device=units.device) for name, shape in self.shapes.items()}
        return self.spread(units / self.sums(ones), 0)

    def vectors(self, name: str, weight: Tensor) -> Tensor:
        """The units of the tensor ``name`` as vectors, (groups, units, weights of a unit); missing weights of the last ones are 0."""
        if not self.block:
            own = weight[self.rows[name]]
            return own.reshape(1, len(own), -1)
        cut = blocked(weight, self.block, self.channels).permute(0, 2, 4, 1, 3)
        return cut.reshape(len(cut), -1, self.area * self.block * self.channels)

    @property
    def name(self) -> str:
        """The one tensor of a layer."""
        return next(iter(self.shapes))


def units_of(tensors: Mapping[str, Tensor], scheme: Scheme, kernels: bool = False) -> tuple[Units, ...]:
    """The units of every layer and class that ``scheme`` prunes, no weight in two of them.

    A pattern layer counts by positions (4 for each kernel that stays), with ``kernels`` by whole kernels.
    """
    found = []
    for path, layer in scheme.layers.items():
        if layer.pruning in ("none", "filter"):
            continue
        shape, pattern = tensors[f"{path}.weight"].shape, layer.pruning == "pattern"
        area = math.prod(shape[2:]) if pattern and kernels else 1
        kept = kept_units(layer, shape) * (PATTERN_WEIGHTS if pattern and not kernels else 1)
        found.append(Units({f"{path}.weight": shape}, kept, layer.block, layer.channels, area))
    for members, rate in filter_classes(scheme):
        rows = class_rows(tensors, members)
        first = next(iter(rows))
        found.append(Units({name: tensors[name].shape for name in rows}, kept_count(len(tensors[first][rows[first]]), rate), rows=rows))
    return tuple(found)


def joined(parts: Iterable[Mapping[str, Tensor]], join: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """What ``spread`` gave for several Units as one: ``join`` (add scores, and masks) where two classes have rows of the same tensor."""
    whole: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            whole[name] = join(whole[name], value) if name in whole else value
    return whole
