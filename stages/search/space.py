"""Space and Trial: what a sampler chooses from and what it learns from, as plain values. Imports numpy only; knows nothing of networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Choices = tuple[Hashable, ...]  # one choice per slot
LabelledGraph = tuple[Sequence[Hashable], Sequence[tuple[int, int]]]  # node labels; edges as (from, to) node numbers
STATES = ("complete", "infeasible", "failed")
ANCHORED = 0.75  # probability that a slot stays as it is in a draw that varies an anchor


@dataclass(frozen=True)
class Trial:
    """What became of one candidate. Failures are values: ``Trial(choices, state="failed", error="RunnerCrashed: signal 11")``.

    * complete: ``accuracy`` (larger is better; any scale) and ``latency_ms`` were measured. Whether it meets a budget is for the budget's owner to say.
    * infeasible: measured slower than the budget; ``accuracy`` is None when it was not trained for that reason.
    * failed: neither is known; ``error`` says why.

    ``dense_ms`` and ``ci95`` are kept for the record: the reference timed in the same rounds, and the interval of ``latency_ms``. ``curve`` is the training's
    (epochs done, mean loss since the point before); ``stopped`` says that it was ended early, so that ``accuracy`` is lower than it might be.
    """

    choices: Choices
    accuracy: float | None = None
    latency_ms: float | None = None
    state: str = "complete"
    error: str | None = None
    dense_ms: float | None = None
    ci95: tuple[float, float] | None = None
    curve: tuple[tuple[float, float], ...] = ()
    stopped: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r} is none of {', '.join(STATES)}")
        if self.state == "complete" and self.accuracy is None:
            raise ValueError("a complete trial has an accuracy")
        for name in ("accuracy", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: tell what broke as a failed trial instead")

    @property
    def only_measured(self) -> bool:
        """Whether it was too slow to be trained."""
        return self.state == "infeasible" and self.accuracy is None

    def meets(self, budget_ms: float | None) -> bool:
        """Complete and within the budget (None: any latency will do)."""
        return self.state == "complete" and (budget_ms is None or (self.latency_ms is not None and self.latency_ms <= budget_ms))


@dataclass(frozen=True)
class Costs:
    """Additive estimates of what each choice does to a candidate: ``loss[i][j]`` (any unit; more is worse) and ``latency_ms[i][j]`` of the j-th choice of slot i.

    Both may be relative to anything, e.g. to the first choice; ``base_ms`` is what is to be added to the sum of latencies.
    """

    loss: tuple[tuple[float, ...], ...]
    latency_ms: tuple[tuple[float, ...], ...]
    base_ms: float = 0.0


class Space:
    """Decision slots with categorical choices.

    ``slots[i]`` are the distinct, hashable choices of decision i; those that are alike best stand side by side, for ``step``.
    ``graph(choices)`` gives the labelled DAG of one candidate for the Weisfeiler-Lehman kernel; without it the slots form a chain. ``first`` are candidates worth evaluating before any proposal, the best guess first. ``weights[i]`` are relative
    probabilities (> 0) of slot i's choices when one is drawn at random; uniform by default. ``anchors`` are candidates that every second random draw varies.

    What its owner may know besides, and what some strategies use: ``costs``, additive estimates of loss and latency (ilp, anneal; learnt from trials where they are missing);
    ``uniform``, ladders of candidates that treat every slot alike, each from the mildest to the fastest (uniform); ``threshold(t)``, the candidate in which one threshold for
    all weights prunes about the share t of them, 0 to 1 (global-magnitude, which needs it); ``settle(choices, rng)``, the candidate that a proposal should rather be where some slots make sense
    only together.

    >>> Space([("none", "conv1x1"), (1, 2, 3)]).size
    6
    """

    def __init__(
        self,
        slots: Sequence[Sequence[Hashable]],
        graph: Callable[[Choices], LabelledGraph] | None = None,
        *,
        first: Sequence[Choices] = (),
        weights: Sequence[Sequence[float] | np.ndarray] | None = None,
        costs: Costs | None = None,
        uniform: Sequence[Sequence[Choices]] = (),
        threshold: Callable[[float], Choices] | None = None,
        anchors: Sequence[Choices] = (),
        settle: Callable[[Choices, np.random.Generator], Choices] | None = None,
    ):
        self.slots: tuple[tuple[Hashable, ...], ...] = tuple(tuple(slot) for slot in slots)
        self._index = [{choice: i for i, choice in enumerate(slot)} for slot in self.slots]
        if any(not slot or len(slot) != len(index) for slot, index in zip(self.slots, self._index, strict=True)):
            raise ValueError("every slot needs at least one choice, and no choice twice")
        self.graph = graph or self._chain
        self._weights = (
            [np.asarray(w, float) / np.sum(w) for w in weights] if weights is not None else [np.full(len(slot), 1 / len(slot)) for slot in self.slots]
        )
        if [len(w) for w in self._weights] != [len(slot) for slot in self.slots] or any((w <= 0).any() for w in self._weights):
            raise ValueError("weights need one positive number per choice of every slot")
        self.first = tuple(dict.fromkeys(self.check(choices) for choices in first))
        for table in (costs.loss, costs.latency_ms) if costs else ():
            if [len(row) for row in table] != [len(slot) for slot in self.slots]:
                raise ValueError("costs need one number per choice of every slot")
        self.costs, self.uniform, self.threshold = costs, tuple(map(tuple, uniform)), threshold
        self.anchors, self._settle = tuple(self.check(choices) for choices in anchors), settle

    def starting_with(self, first: Sequence[Choices], weights: Sequence[Sequence[float] | np.ndarray] | None = None) -> Space:
        """This space with other first candidates, and other weights if given."""
        return self.knowing(first=first) if weights is None else self.knowing(first=first, weights=weights)

    def knowing(self, **knowledge: Any) -> Space:
        """This space with some of its keyword arguments (first, weights, costs, uniform, threshold, anchors, settle) given anew."""
        known = {"first": self.first, "weights": self._weights, "costs": self.costs, "uniform": self.uniform, "threshold": self.threshold, "anchors": self.anchors, "settle": self._settle}
        return Space(self.slots, self.graph, **(known | knowledge))

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return math.prod(len(slot) for slot in self.slots)

    def weights(self, slot: int) -> np.ndarray:
        """Probabilities of the choices of one slot in a random draw, (choices,)."""
        return self._weights[slot]

    def check(self, choices: Sequence[Any]) -> Choices:
        """``choices`` as a tuple; ValueError if it isn't one of this space's candidates."""
        choices = tuple(choices)
        self.encode(choices)
        return choices

    def encode(self, choices: Sequence[Any]) -> list[int]:
        """Position of each choice in its slot: plain integers for a journal."""
        if len(choices) != len(self.slots):
            raise ValueError(f"{len(choices)} choices for {len(self.slots)} slots")
        try:
            return [index[choice] for index, choice in zip(self._index, choices, strict=True)]
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} is not a choice of its slot") from None

    def decode(self, positions: Sequence[int]) -> Choices:
        """The inverse of encode; ValueError when the positions don't fit this space."""
        if len(positions) != len(self.slots) or any(not 0 <= p < len(slot) for p, slot in zip(positions, self.slots, strict=True)):
            raise ValueError("these positions belong to another space")
        return tuple(slot[p] for p, slot in zip(positions, self.slots, strict=True))

    def draw_slot(self, slot: int, rng: np.random.Generator) -> Hashable:
        """A random choice of one slot, by its weights."""
        return self.slots[slot][rng.choice(len(self.slots[slot]), p=self._weights[slot])]

    def other(self, slot: int, choice: Hashable, rng: np.random.Generator) -> Hashable:
        """A random choice of the slot that isn't ``choice``, by its weights; ``choice`` itself where it is the only one."""
        weights = self._weights[slot].copy()
        weights[self._index[slot][choice]] = 0.0
        return self.slots[slot][int(rng.choice(len(weights), p=weights / weights.sum()))] if weights.any() else choice

    def step(self, slot: int, choice: Hashable, rng: np.random.Generator) -> Hashable:
        """Another choice of the slot, at most a fifth of its length away, by its weights; ``choice`` itself where it is the only one."""
        here, reach = self._index[slot][choice], max(1, len(self.slots[slot]) // 5)
        near = [i for i in range(here - reach, here + reach + 1) if i != here and 0 <= i < len(self.slots[slot])]
        if not near:
            return choice
        weights = self._weights[slot][near]
        return self.slots[slot][int(rng.choice(near, p=weights / weights.sum()))]

    def draw(self, rng: np.random.Generator) -> Choices:
        """A random candidate: each slot on its own, or, every second time when there are anchors, one of them with some of its slots drawn anew."""
        if not self.anchors or rng.random() < 0.5:
            return tuple(self.draw_slot(i, rng) for i in range(len(self.slots)))
        anchor = self.anchors[int(rng.integers(len(self.anchors)))]
        return tuple(choice if rng.random() < ANCHORED else self.draw_slot(i, rng) for i, choice in enumerate(anchor))

    def settled(self, proposals: Sequence[Choices], known: Collection[Choices], rng: np.random.Generator) -> list[Choices]:
        """``proposals`` with slots that make sense only together made so; as it was where that is in ``known``, or there already. Distinct, in order, as many."""
        if self._settle is None:
            return list(proposals)
        taken, found = {*known, *proposals}, []
        for choices in proposals:
            better = self._settle(choices, rng)
            found.append(choices if better in taken else better)
            taken.add(found[-1])
        return found

    def next_new(self, choices: Choices, known: Collection[Choices]) -> Choices | None:
        """The first candidate at or after ``choices``, counting like an odometer and wrapping round, that isn't in ``known``; None when all are.

        Needs at most ``len(known) + 1`` steps, so it also ends the search through a space that is nearly exhausted.
        """
        if len(known) >= self.size:
            return None
        positions = self.encode(choices)
        while (candidate := self.decode(positions)) in known:
            for i in reversed(range(len(positions))):
                positions[i] = (positions[i] + 1) % len(self.slots[i])
                if positions[i]:
                    break
        return candidate

    def _chain(self, choices: Choices) -> LabelledGraph:
        return [(i, choice) for i, choice in enumerate(choices)], [(i - 1, i) for i in range(1, len(choices))]
