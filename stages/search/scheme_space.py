"""The space of filter types and pruning schemes of a traced network: one slot per layer that is worth changing. Imports graph, schemes and space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stages.errors import UsageError
from stages.graph import Graph, Layer, couplings
from stages.schemes import DENSE, LayerScheme, Scheme, legal_schemes
from stages.search.space import Choices, LabelledGraph, Space
from stages.search.ties import Ties

WEIGHTS = {
    "none": 1.0,
    "filter": 0.5,
    "block-punched": 4.0,
    "block-based": 4.0,
    "pattern": 1.5,
}  # of a random draw; filters cost the most accuracy, and one wrong layer spoils a network

SPREAD = 0.6  # of the rates of random draws, in units of ln(rate)
REPLACED = 0.5  # layers that a random draw replaces, on average: one wrong layer spoils a network, and the more the longer the network
MOST_REPLACED = 0.25  # of the draws of any one layer
WORK = {"keep": 1, "3x3": 3, "1x1-3x3dw-1x1": 4, "3x3dw-1x1": 8, "1x1": 9, "skip": 30}  # times less than the layer it replaces, about: a 3x3 (5x5 for the second) on many channels


@dataclass(frozen=True)
class SchemeSpace:
    """``space`` has one slot for each of ``layers`` (topological order); its choices are LayerSchemes."""

    space: Space
    layers: tuple[Layer, ...]
    graph: Graph
    ties: Ties

    def scheme(self, choices: Choices) -> Scheme:
        """The Scheme of a candidate; prunable layers without a slot are named as dense, unless they lose filters with others."""
        chosen: dict[str, LayerScheme] = {layer.module: c for layer, c in zip(self.layers, choices, strict=True)}  # type: ignore[misc]
        chosen |= self.ties.followers(choices)
        return Scheme({layer.module: chosen.get(layer.module, DENSE) for layer in self.graph.prunable}, couplings(self.graph))

    def named(self, choices: Choices) -> dict[str, str]:
        """Label of each slot's choice by module path, for tables."""
        return {layer.module: c.label for layer, c in zip(self.layers, choices, strict=True)}  # type: ignore[attr-defined]


def scheme_space(
    graph: Graph,
    schemes: Sequence[str],
    rates: Sequence[float],
    blocks: Sequence[int],
    min_share: float = 0.005,
    channel_blocks: Sequence[int] = (1,),
    types: Mapping[str, Sequence[str]] = {},
) -> SchemeSpace:
    """Every legal combination of ``schemes``, ``rates``, ``blocks`` and ``channel_blocks`` on the prunable layers that have at least ``min_share`` of the network's multiply-accumulates; a
    smaller layer (SE gates, the classifier) can't buy latency, only cost accuracy, and has no slot. ``types`` are the filter types that a layer may take, by module path ("keep" where it isn't named).
    To keep slots small, a layer of another type stays dense or is block-punched at the lowest or the middle of ``rates``, with the smallest of ``blocks``: it has little left to prune.

    ``space.first`` are the candidates that a search surveys before anything else, the fastest ones (the least work; the highest rate of each scheme) and the dense one; without them
    nothing would be known to be feasible, since independent draws per layer all land near one mean latency. ``space.uniform`` has a ladder for each scheme and block.

    In the labelled graph each layer is a node "kind|type|scheme/block rate", which layers of one kind share, joined by data flow; besides, for each rate, a node that says
    whether this very layer's work is cut at least that hard. So two candidates are alike when their layers' rates are, also before any exact label was seen twice.
    UsageError when no layer can be pruned.
    """
    offered = [
        (layer, _choices(layer, graph, schemes, rates, blocks, channel_blocks, types.get(layer.module, ("keep",))))
        for layer in graph.prunable
        if layer.macs >= min_share * graph.macs
    ]
    layers = tuple(layer for layer, choices in offered if choices != (DENSE,))
    if not layers:
        raise UsageError("No layer of the network can be pruned by these schemes.", "Allow more of search_scheme.schemes and search_scheme.rates.")
    slots = [choices for _, choices in offered if choices != (DENSE,)]
    flow = edges(graph, layers)  # the nodes of steps have no edges: they count on their own in every round
    kinds = [kind(layer) for layer in layers]

    def labelled(choices: Choices) -> LabelledGraph:
        nodes = [f"{k}|{c.label}" for k, c in zip(kinds, choices, strict=True)]  # type: ignore[attr-defined]
        steps = [f"{i} {'>=' if cut(c) >= rate else '<'} {rate:g}x" for i, c in enumerate(choices) for rate in rates]  # type: ignore[arg-type]
        return nodes + steps, flow

    first = uniform_candidates(slots, schemes, rates, blocks)
    uniform = uniform_ladders(slots, schemes, rates, blocks)
    ties = Ties(layers, graph)
    space = Space(slots, labelled, first=first, uniform=uniform, weights=_weights(slots, [[DENSE] * len(slots)], math.inf), settle=lambda c, rng: ties.settled(c, slots, rng))
    return SchemeSpace(space, layers, graph, ties)


def cut(choice: LayerScheme) -> float:
    """How many times less work a layer becomes by ``choice``, about: pruning rate times what the filter type saves."""
    return WORK[choice.filter_type] * choice.rate


def uniform_candidates(slots: Sequence[Sequence[LayerScheme]], schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int]) -> list[Choices]:
    """The least work, short of skipping; the highest rate of each scheme (of block-punched, with each block); the dense network. A layer that lacks the scheme takes block-punched, or stays dense."""
    high, small = max(rates), min(blocks)
    wanted = [(pruning, high, block) for pruning in schemes if pruning != "none" for block in (blocks if pruning == "block-punched" else (small,))]
    wanted.append(("none", 1.0, 0))
    least = tuple(max((c for c in slot if c.filter_type != "skip"), key=cut, default=slot[0]) for slot in slots)
    return list(dict.fromkeys([least, *(tuple(nearest(slot, *w) for slot in slots) for w in wanted)]))


def uniform_ladders(slots: Sequence[Sequence[LayerScheme]], schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int]) -> list[list[Choices]]:
    """For the strategy "uniform", one ladder for each scheme and block: every layer of its own filter type (where that is allowed) at each rate, the lowest first."""
    kinds = [(pruning, block) for pruning in schemes if pruning != "none" for block in (blocks[:1] if pruning == "filter" else blocks)]
    return [[tuple(nearest(slot, pruning, rate, block) for slot in slots) for rate in sorted(rates)] for pruning, block in kinds]


def nearest(slot: Sequence[LayerScheme], pruning: str, rate: float, block: int) -> LayerScheme:
    """The choice of ``slot`` that comes closest: the layer's own filter type before the scheme before the rate before the block; of those the fewest channels a unit."""
    slot = [c for c in slot if c.filter_type == "keep"] or slot
    kinds = {c.pruning for c in slot}
    order = {"block-punched": ("block-punched", "block-based")}.get(pruning, (pruning, "block-punched", "block-based"))
    wanted = next((k for k in order if k in kinds), DENSE.pruning)
    fitting = [c for c in slot if c.pruning == wanted] or list(slot)
    return min(fitting, key=lambda c: (abs(math.log(c.rate / rate)), abs(c.block - block), c.channels))


def focus(space: Space, first: Sequence[Choices]) -> Space:
    """``space`` that begins with ``first`` and whose random draws favour, in every layer, rates near those of ``first``: for each scheme those of the first candidate that has it there.

    ``first`` should be uniform candidates just under the budget. Then draws scatter round the budget, and they are mild: of layers drawn evenly from all rates
    one is always pruned so hard that the network is spoilt and nothing is learnt of the others. Every second draw varies one of ``first``: filters that one layer lost are work that its
    neighbours are spared, so a mixture drawn layer by layer is much slower than each of the uniform candidates.
    """
    if not first:
        return space
    return space.knowing(first=first, weights=_weights(space.slots, first, SPREAD), anchors=first)  # type: ignore[arg-type]


def by_slot(space: SchemeSpace, figures: Mapping[str, float]) -> list[float]:
    """Sums of ``figures`` (by module path, of a candidate) for each slot, and last of what belongs to none. What isn't searched counts for the last slot before it: filters pruned there shrink it too."""
    owners: dict[str, int] = {}
    number, current = {layer.module: i for i, layer in enumerate(space.layers)}, len(space.layers)
    for layer in space.graph:
        current = number.get(layer.module, current)
        owners[layer.module] = number.get(layer.module, owners.get(layer.module, current))
    found = [0.0] * (len(space.layers) + 1)
    for path, value in figures.items():
        slot = owners.get(path, next((i for owner, i in number.items() if path.startswith(f"{owner}.")), len(space.layers)))
        found[slot] += value
    return found


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
    layer: Layer,
    graph: Graph,
    schemes: Sequence[str],
    rates: Sequence[float],
    blocks: Sequence[int],
    channel_blocks: Sequence[int],
    types: Sequence[str],
) -> tuple[LayerScheme, ...]:
    legal = legal_schemes(layer, graph, schemes, rates, blocks, channel_blocks)
    kept = legal if "none" in schemes or len(legal) == 1 else legal[1:]
    pruned = [LayerScheme("keep", "block-punched", rate, min(blocks)) for rate in (min(rates), sorted(rates)[len(rates) // 2])] if "block-punched" in schemes else []
    replaced = [replace(c, filter_type=kind) for kind in types if kind != "keep" for c in (DENSE, *(pruned if kind != "skip" else ()))]
    allowed = dict.fromkeys([*(kept if "keep" in types else ()), *replaced])
    return tuple(sorted(allowed, key=cut))  # alike: the work that is left tells more than the scheme


def _weights(slots: Sequence[Sequence[LayerScheme]], centres: Sequence[Sequence[LayerScheme]], spread: float) -> list[list[float]]:
    """Of random draws: each scheme its share, whatever the number of its rates and blocks, and so each filter type of the few draws that replace; in each, choices that cut the work about as
    much as the first of ``centres`` with the same scheme (else the first of all) count most (``spread``: in units of ln(work))."""
    share = min(MOST_REPLACED, REPLACED / max(1, sum(any(c.filter_type != "keep" for c in slot) for slot in slots)))
    found = []
    for slot, *at in zip(slots, *centres, strict=True):
        goal = {centre.pruning: cut(centre) for centre in reversed(at)}
        plain = [WEIGHTS[c.pruning] if c.filter_type == "keep" else 1.0 for c in slot]
        many = Counter((c.filter_type, c.pruning if c.filter_type == "keep" else "") for c in slot)
        near = [math.exp(-abs(math.log(cut(c) / goal.get(c.pruning if c.filter_type == "keep" else at[0].pruning, cut(at[0])))) / spread) for c in slot]
        raw = [w * n / many[c.filter_type, c.pruning if c.filter_type == "keep" else ""] for w, n, c in zip(plain, near, slot, strict=True)]
        kept = sum(w for w, c in zip(raw, slot, strict=True) if c.filter_type == "keep")
        others = sum(raw) - kept
        found.append([w if c.filter_type == "keep" or not kept else w / others * kept * share / (1 - share) for w, c in zip(raw, slot, strict=True)])
    return found
