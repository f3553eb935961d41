"""The space of pruning schemes of a traced network: one slot per layer that is worth pruning. Imports graph, schemes and space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stages.errors import UsageError
from stages.graph import Graph, Layer, couplings
from stages.schemes import DENSE, LayerScheme, Scheme, legal_schemes
from stages.search.space import Choices, LabelledGraph, Space

WEIGHTS = {
    "none": 1.0,
    "filter": 0.5,
    "block-punched": 4.0,
    "block-based": 4.0,
    "pattern": 1.5,
}  # of a random draw; filters cost the most accuracy, and one wrong layer spoils a network

SPREAD = 0.6  # of the rates of random draws, in units of ln(rate)


@dataclass(frozen=True)
class SchemeSpace:
    """``space`` has one slot for each of ``layers`` (topological order); its choices are LayerSchemes."""

    space: Space
    layers: tuple[Layer, ...]
    graph: Graph

    def scheme(self, choices: Choices) -> Scheme:
        """The Scheme of a candidate; prunable layers without a slot are named as dense."""
        chosen: dict[str, LayerScheme] = {layer.module: c for layer, c in zip(self.layers, choices, strict=True)}  # type: ignore[misc]
        return Scheme({layer.module: chosen.get(layer.module, DENSE) for layer in self.graph.prunable}, couplings(self.graph))

    def named(self, choices: Choices) -> dict[str, str]:
        """Label of each slot's choice by module path, for tables."""
        return {layer.module: c.label for layer, c in zip(self.layers, choices, strict=True)}  # type: ignore[attr-defined]


def scheme_space(
    graph: Graph, schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int], min_share: float = 0.005, channel_blocks: Sequence[int] = (1,)
) -> SchemeSpace:
    """Every legal combination of ``schemes``, ``rates``, ``blocks`` and ``channel_blocks`` on the prunable layers that have at least ``min_share`` of the network's multiply-accumulates; a
    smaller layer (SE gates, the classifier) can't buy latency, only cost accuracy, and has no slot.

    ``space.first`` are the uniform candidates that a search surveys before anything else, the fastest ones (the highest rate of each scheme) at their head; without them
    nothing would be known to be feasible, since independent draws per layer all land near one mean latency.

    In the labelled graph each layer is a node "kind|scheme/block rate", which layers of one kind share, joined by data flow; besides, for each rate, a node that says
    whether this very layer is pruned at least that hard. So two candidates are alike when their layers' rates are, also before any exact label was seen twice.
    UsageError when no layer can be pruned.
    """
    offered = [(layer, _choices(layer, graph, schemes, rates, blocks, channel_blocks)) for layer in graph.prunable if layer.macs >= min_share * graph.macs]
    layers = tuple(layer for layer, choices in offered if choices != (DENSE,))
    if not layers:
        raise UsageError("No layer of the network can be pruned by these schemes.", "Allow more of search_scheme.schemes and search_scheme.rates.")
    slots = [choices for _, choices in offered if choices != (DENSE,)]
    flow = edges(graph, layers)  # the nodes of steps have no edges: they count on their own in every round
    kinds = [kind(layer) for layer in layers]

    def labelled(choices: Choices) -> LabelledGraph:
        nodes = [f"{k}|{c.label}" for k, c in zip(kinds, choices, strict=True)]  # type: ignore[attr-defined]
        steps = [f"{i} {'>=' if c.rate >= rate else '<'} {rate:g}x" for i, c in enumerate(choices) for rate in rates]  # type: ignore[attr-defined]
        return nodes + steps, flow

    return SchemeSpace(
        Space(slots, labelled, first=uniform_candidates(slots, schemes, rates, blocks), weights=[_weights(slot) for slot in slots]), layers, graph
    )


def uniform_candidates(slots: Sequence[Sequence[LayerScheme]], schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int]) -> list[Choices]:
    """The highest rate of each scheme (and block), then block-punched at every other rate; a layer that lacks the scheme takes block-punched, or stays dense."""
    high, small = max(rates), min(blocks)
    wanted = [(pruning, high, block) for pruning in schemes if pruning != "none" for block in (blocks if pruning == "block-punched" else (small,))]
    first = next((s for s in ("block-punched", "filter", "pattern") if s in schemes), "none")
    wanted += [(first, rate, small) for rate in sorted(rates, reverse=True)] + [("none", 1.0, 0)]
    return list(dict.fromkeys(tuple(nearest(slot, *w) for slot in slots) for w in wanted))


def nearest(slot: Sequence[LayerScheme], pruning: str, rate: float, block: int) -> LayerScheme:
    """The choice of ``slot`` that comes closest: the scheme before the rate before the block; of those the fewest channels a unit."""
    kinds = {c.pruning for c in slot}
    order = {"block-punched": ("block-punched", "block-based")}.get(pruning, (pruning, "block-punched", "block-based"))
    wanted = next((k for k in order if k in kinds), DENSE.pruning)
    fitting = [c for c in slot if c.pruning == wanted] or list(slot)
    return min(fitting, key=lambda c: (abs(math.log(c.rate / rate)), abs(c.block - block), c.channels))


def focus(space: Space, first: Sequence[Choices]) -> Space:
    """``space`` that begins with ``first`` and whose random draws favour, in every layer, rates near those of ``first[0]``.

    ``first[0]`` should be the uniform candidate just under the budget. Then draws scatter round the budget, and they are mild: of layers drawn evenly from all rates
    one is always pruned so hard that the network is spoilt and nothing is learnt of the others.
    """
    if not first:
        return space
    near = [_near(slot, at) for slot, at in zip(space.slots, first[0], strict=True)]  # type: ignore[arg-type]
    return space.starting_with(first, near)


def edges(graph: Graph, layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """Data flow between ``layers``, by their positions: (i, j) when a path from i to j meets no other of them."""
    number = {layer.name: i for i, layer in enumerate(layers)}
    sources: dict[str, set[int]] = {}
    found: set[tuple[int, int]] = set()
    for layer in graph:
        before = set().union(*(sources[name] for name in layer.inputs)) if layer.inputs else set()
        if layer.name in number:
            found |= {(i, number[layer.name]) for i in before}
            before = {number[layer.name]}
        sources[layer.name] = before
    return sorted(found)


def kind(layer: Layer) -> str:
    """Layers of one kind are alike to the kernel: the operator, its size, and its work to within a factor of two, e.g. "conv2d 3x3 2^20"."""
    size = "x".join(map(str, layer.weight_shape[2:]))
    return " ".join(filter(None, (layer.op, size, f"2^{round(math.log2(max(1, layer.macs)))}")))


def _choices(
    layer: Layer, graph: Graph, schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int], channel_blocks: Sequence[int]
) -> tuple[LayerScheme, ...]:
    legal = legal_schemes(layer, graph, schemes, rates, blocks, channel_blocks)
    allowed = legal if "none" in schemes or len(legal) == 1 else legal[1:]
    return tuple(sorted(allowed, key=lambda c: c.rate))  # alike: the rate tells more than the scheme


def _near(slot: Sequence[LayerScheme], at: LayerScheme) -> list[float]:
    return [w * math.exp(-abs(math.log(c.rate / at.rate)) / SPREAD) for w, c in zip(_weights(slot), slot, strict=True)]


def _weights(slot: Sequence[LayerScheme]) -> list[float]:
    """Each scheme its share of the draws, whatever the number of its rates and blocks."""
    return [WEIGHTS[c.pruning] / sum(other.pruning == c.pruning for other in slot) for c in slot]
