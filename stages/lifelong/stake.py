"""What a task may have of each part: how many free units it claims, and how many of earlier tasks' it may use. Imports torch, config, errors and schemes of npas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from stages.config import Lifelong
from stages.errors import UsageError
from stages.lifelong.commons import FREE, Commons, Part, spread
from stages.schemes.masks import top_mask
from stages.schemes.units import Units

ROUNDING = 0.01  # what a share may lack because units can't be cut: less than this is no lack of room


@dataclass(frozen=True)
class Stake:
    """One part as a task sees it: in each group ``own`` of the free units become its own, and it uses ``reused`` of the taken ones."""

    units: Units
    taken: Tensor  # (groups, units), bool: another task's
    values: Tensor  # the taken weights, 0 in free units
    where: Tensor  # ``taken`` in the weight's shape
    own: int
    reused: int

    @property
    def name(self) -> str:
        """The tensor."""
        return self.units.name

    def claim(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The free units of the largest L2 norm, (groups, units): the projection onto "no more than ``own`` of them in each group"."""
        norms = self.units.norms(tensors)
        taken = self.taken.to(norms.device)
        return top_mask(norms.masked_fill(taken, -1), self.own)


def stakes(commons: Commons, settings: Lifelong) -> dict[str, Stake]:
    """The stake of the next task in each part, by the tensor's name. UsageError when not enough is free."""
    shares = {path: _counts(part, len(commons.tasks), settings) for path, part in commons.parts.items()}
    _check_room(commons, settings, shares)
    return {f"{path}.weight": _stake(f"{path}.weight", commons.parts[path], *counts) for path, counts in shares.items()}


def _counts(part: Part, done: int, settings: Lifelong) -> tuple[int, int]:
    """(own, reused) of one part. Without a share, the tasks to come are to find equal parts."""
    units, free = part.owners.shape[1], part.count(FREE)
    wanted = round(free / max(1, settings.tasks - done)) if settings.share is None else round(settings.share * units)
    reused = round(settings.reuse * (units - free))
    return min(free, max(wanted, 0 if reused else 1)), reused


def _stake(name: str, part: Part, own: int, reused: int) -> Stake:
    taken = part.owners != FREE
    return Stake(part.units(name), taken, part.values, spread(part, taken), own, reused)


def _check_room(commons: Commons, settings: Lifelong, shares: Mapping[str, tuple[int, int]]) -> None:
    done, free = len(commons.tasks), commons.weights(FREE) / commons.size
    if settings.share is None and done >= settings.tasks:
        hint = f"Raise lifelong.tasks above {done}, or set lifelong.share." if free > ROUNDING else "Start another network in another folder, with more lifelong.tasks from the first task on."
        raise UsageError(f"The network was planned for {settings.tasks} tasks and holds {done}; {100 * free:.0f} % of its weights are free.", hint)
    if settings.share is not None and settings.share > free + ROUNDING:
        raise UsageError(f"The task is to have {100 * settings.share:.0f} % of the weights, but only {100 * free:.0f} % are free.", "Lower lifelong.share, or start another network in another folder.")
    empty = next((path for path, counts in shares.items() if not sum(counts)), "")
    if empty:
        raise UsageError(f"Nothing of the layer '{empty}' is free, and the task uses nothing of others.", "Raise lifelong.reuse, or start another network in another folder.")
