"""The weights that tasks have in common, who owns which, and what each task has for itself. Imports torch, errors, schemes and tasks/imports of npas.

The bits of a learnt task's network depend on its own entry and on the values of units that have an owner, and neither ever changes: so no later task can change what it computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stages.errors import UsageError
from stages.schemes import DENSE, LayerScheme, Scheme
from stages.schemes.units import Units
from stages.tasks.imports import suggestion

FREE = 0  # owner of what no task has claimed


@dataclass(frozen=True)
class Part:
    """The weight of one layer, cut into the units of block-punched pruning, each of which has one owner.

    A convolution with weight (64, 32, 3, 3) in blocks of 8 has 8 groups of 288 units. Every group has equally many units of each owner, so the part that a task uses is block-punched.
    """

    layer: LayerScheme  # "block-punched" or "block-based" with its block; its rate has no meaning here
    values: Tensor  # the weight's shape, float32; 0 in free units
    owners: Tensor  # (groups, units), int16: FREE, or the number of a task

    def units(self, name: str) -> Units:
        """The units of the tensor ``name``, which has this part's shape."""
        return Units({name: self.values.shape}, self.owners.shape[1], self.layer.block)

    def count(self, owner: int) -> int:
        """Units of ``owner`` in each group."""
        return int((self.owners[0] == owner).sum())


@dataclass(frozen=True)
class Learnt:
    """A learnt task: its number (from 1), the units of each part that its network uses, its own ones and others', and every tensor that isn't in common (biases, norms, depthwise layers, head)."""

    number: int
    used: Mapping[str, Tensor]  # path of the part -> (groups, units), bool
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)  # plain values: classes, accuracy, ...


@dataclass(frozen=True)
class Commons:
    """A network that holds several tasks. ``parts`` by module path; ``heads`` names the tensors whose shape is a matter of each task; ``shape`` is that of one input."""

    model: str
    shape: tuple[int, ...]
    heads: tuple[str, ...]
    parts: Mapping[str, Part]
    replacements: tuple[Mapping[str, Any], ...] = ()
    tasks: Mapping[str, Learnt] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Learnt:
        if name not in self.tasks:
            raise UsageError(f"No task '{name}' was learnt.", suggestion(name, self.tasks) if self.tasks else "Learn it with 'npas lifelong --name'.")
        return self.tasks[name]

    @property
    def size(self) -> int:
        """Weights in common."""
        return sum(part.values.numel() for part in self.parts.values())

    def weights(self, owner: int) -> int:
        """How many of the weights in common ``owner`` has."""
        return sum(int(spread(part, part.owners == owner).sum()) for part in self.parts.values())

    def used(self, name: str) -> int:
        """How many of the weights in common the network of a task uses."""
        return sum(int(spread(self.parts[path], used).sum()) for path, used in self[name].used.items())

    def told(self, name: str, facts: Mapping[str, Any]) -> Commons:
        """With more facts of a task."""
        return replace(self, tasks={**self.tasks, name: replace(self[name], facts={**self[name].facts, **facts})})

    def scheme(self, name: str) -> Scheme:
        """The scheme that the network of a task has: block-punched, at the rate that its units mean; a layer that uses all of them is dense."""
        return Scheme({path: scheme_of(self.parts[path].layer, used) for path, used in self[name].used.items()})

    def masks(self, name: str) -> dict[str, Tensor]:
        """Masks of ``scheme``, as make_masks has them: name -> bool, True where the network of the task has a weight."""
        layers = self.scheme(name).layers
        return {f"{path}.weight": spread(self.parts[path], used) for path, used in self[name].used.items() if layers[path] != DENSE}

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """The network of a task: its own tensors, and of the common ones what it uses, exactly 0 elsewhere."""
        learnt = self[name]
        common = {f"{path}.weight": self.parts[path].values.masked_fill(~spread(self.parts[path], used), 0) for path, used in learnt.used.items()}
        return {**{key: value.clone() for key, value in learnt.tensors.items()}, **common}

    def digest(self, name: str) -> str:
        """SHA-256 of every bit of a task's network: the same for ever."""
        found = hashlib.sha256()
        for key, tensor in sorted(self.state_dict(name).items()):
            found.update(key.encode() + tensor.contiguous().numpy().tobytes())
        return found.hexdigest()

    def added(self, name: str, learnt: Learnt, weights: Mapping[str, Tensor]) -> Commons:
        """With one more task, whose units that nobody owned are its own from now on, with the values in ``weights`` (a state_dict)."""
        parts = {}
        for path, part in self.parts.items():
            new = learnt.used[path] & (part.owners == FREE)
            values = torch.where(spread(part, new), weights[f"{path}.weight"].cpu(), part.values)
            parts[path] = replace(part, values=values, owners=part.owners.masked_fill(new, learnt.number))
        return replace(self, parts=parts, tasks={**self.tasks, name: learnt})

    def to_checkpoint(self) -> dict[str, Any]:
        """Plain values and tensors for save_checkpoint."""
        parts = {path: {"layer": part.layer.to_json(), "values": part.values, "owners": part.owners} for path, part in self.parts.items()}
        tasks = {name: {"number": t.number, "used": dict(t.used), "tensors": dict(t.tensors), "facts": dict(t.facts)} for name, t in self.tasks.items()}
        return {"model": self.model, "shape": self.shape, "heads": self.heads, "parts": parts, "replacements": [dict(r) for r in self.replacements], "tasks": tasks}

    @staticmethod
    def from_checkpoint(content: Mapping[str, Any]) -> Commons:
        """The inverse of ``to_checkpoint``."""
        parts = {path: Part(LayerScheme.from_json(p["layer"]), p["values"], p["owners"]) for path, p in content["parts"].items()}
        tasks = {name: Learnt(t["number"], t["used"], t["tensors"], t["facts"]) for name, t in content["tasks"].items()}
        return Commons(content["model"], tuple(content["shape"]), tuple(content["heads"]), parts, tuple(content["replacements"]), tasks)


def spread(part: Part, units: Tensor) -> Tensor:
    """(groups, units) -> the weight's shape."""
    return part.units("weight").spread(units, False)["weight"]


def scheme_of(layer: LayerScheme, used: Tensor) -> LayerScheme:
    """``layer`` at the rate that keeps as many units as each group of ``used`` has."""
    count, kept = used.shape[1], int(used[0].sum())
    return DENSE if kept == count else replace(layer, rate=count / kept)
