"""Which channels may change places, and how a network's tensors follow: a network's function doesn't depend on the order of its channels. Imports graph values only, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.graph.channels import Partition, group_pieces, places_text
from stages.graph.flow import Flow, flow, group_slices
from stages.graph.layer import Graph, Layer

_SCALED = ("batch_norm", "conv2d", "linear")  # operations with a row of parameters for each channel of their result
_MOVING = ("slice", "concat", "channel_shuffle", "permute")


@dataclass(frozen=True)
class Orbit:
    """Channels that stand together in every tensor, so that any order of them, the same everywhere, gives the same network. There are n of them, in the order of ``name``'s rows.

    ``rows``: for each tensor with a row a channel, the rows of each channel. ``columns``: for each weight that reads them, by its first filter, (filters, columns) of each group that has any.
    Both are (n, times): several times a channel behind a flattening, once elsewhere. A depthwise layer and a batch norm have rows only.
    ``made``: module path -> rows (n,), of the layers with weights that make the channels, by which a pruning scheme names them.
    """

    name: str
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, dict[int, tuple[slice, np.ndarray]]] = field(default_factory=dict)
    made: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.made.values())))

    def permute(self, tensors: MutableMapping[str, Any], order: np.ndarray) -> None:
        """Channel ``order[k]`` goes to the place of channel k, in place, in all of ``tensors`` (of torch, by state_dict name)."""
        for name, rows in self.rows.items():
            tensors[name][rows.ravel()] = tensors[name][rows[order].ravel()]
        for name, parts in self.columns.items():
            for filters, columns in parts.values():
                block = tensors[name][filters]
                block[:, columns.ravel()] = block[:, columns[order].ravel()]


def orbits(graph: Graph) -> tuple[Orbit, ...]:
    """All sets of two channels or more that may change places, in order of appearance."""
    traced = flow(graph)
    parts = Partition(np.zeros(len(traced.pinned), int))
    for ids in (*traced.of.values(), *traced.reads.values(), *group_pieces(graph, traced)):
        parts.refine(ids)
    labels = np.where(_held(graph, traced), -1, parts.labels)
    number, rank = np.full(len(labels), -1), np.zeros(len(labels), int)
    made: list[Orbit] = []
    for layer in graph:
        if layer.name in traced.reads:
            ids = traced.of[layer.name]
            for label in dict.fromkeys(labels[ids][number[ids] < 0].tolist()):
                channels = ids[labels[ids] == label]
                if label >= 0 and len(channels) > 1:
                    number[channels], rank[channels] = len(made), np.arange(len(channels))
                    made.append(Orbit(places_text(layer.module, np.flatnonzero(labels[ids] == label), len(ids))))
    for layer in graph:
        _add(layer, traced, number, rank, made)
    return tuple(made)


def _held(graph: Graph, traced: Flow) -> np.ndarray:
    """Channels that must stay: pinned ones, and those that stand several times in a tensor, unless they do so as neighbours (each as a whole image, flattened) that nothing takes apart.

    Which of their places would belong to which isn't known. A layer that makes a channel twice can't be reordered either.
    """
    held = traced.pinned.copy()
    for layer in graph:
        if layer.name not in traced.of:
            continue
        held[_several(traced.of[layer.name], apart=True)] = True
        for name in [layer.name] if layer.name in traced.reads else layer.inputs if layer.op in _MOVING else []:
            held[_several(traced.of.get(name, np.zeros(0, int)))] = True
    return held


def _several(ids: np.ndarray, apart: bool = False) -> np.ndarray:
    """The channels of several places; ``apart``: only those whose places aren't neighbours."""
    found, first, times = np.unique(ids, return_index=True, return_counts=True)
    last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
    return found[last - first + 1 != times] if apart else found[times > 1]


def _add(layer: Layer, traced: Flow, number: np.ndarray, rank: np.ndarray, made: list[Orbit]) -> None:
    """Enter what of ``layer`` belongs to which orbit."""
    if layer.op in _SCALED and layer.params:
        for orbit, places in _places(traced.of[layer.name], number, rank):
            made[orbit].rows.update(dict.fromkeys(layer.params.values(), places))
            if layer.name in traced.reads:
                made[orbit].made.setdefault(layer.module, places[:, 0])
    if layer.name in traced.reads:
        for filters, inner in group_slices(layer) if layer.op == "conv2d" else [(slice(0, None), slice(None))]:
            for orbit, places in _places(traced.reads[layer.name][inner], number, rank):
                made[orbit].columns.setdefault(layer.params["weight"], {})[filters.start] = (filters, places)  # a module that is called twice has the same columns again


def _places(ids: np.ndarray, number: np.ndarray, rank: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For each orbit in a tensor the places of its channels, (n, times)."""
    order = np.lexsort((rank[ids], number[ids]))  # stable: several places of a channel stay in order
    found, first, count = np.unique(number[ids][order], return_index=True, return_counts=True)
    for orbit, begin, size in zip(found.tolist(), first, count, strict=True):
        if orbit >= 0:
            places = order[begin : begin + size]
            yield orbit, places.reshape(len(np.unique(ids[places])), -1)


def column_orders(graph: Graph, orders: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """What reordering channels did to those who read them: weight -> for each of its columns (input channels) the one that came there. ``orders``: an orbit's name -> its order, as ``permute`` takes it.

    Only weights in one group whose columns moved.
    """
    found: dict[str, np.ndarray] = {}
    sizes = {layer.params["weight"]: layer.weight_shape[1] for layer in graph.prunable}
    for orbit in orbits(graph) if orders else ():
        for name in orbit.columns.keys() & sizes.keys() if orbit.name in orders else ():
            columns = orbit.columns[name][0][1]
            found.setdefault(name, np.arange(sizes[name]))[columns.ravel()] = columns[np.asarray(orders[orbit.name])].ravel()
    return found
