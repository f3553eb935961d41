"""Which channels live and die together, and which may change places: the classes that pruning and reordering treat as one. Imports graph values only, no torch.

Removing a channel (filter pruning) removes it everywhere: from the convolution that makes it, from the batch norms and depthwise convolutions behind, from the other side of a residual sum, from a
squeeze-and-excitation gate, and from wherever a concatenation, a channel shuffle or a flatten carries it (flow.py follows them one by one). A *class* is a set of channels that the same layers make
and scale: all filters of a convolution, as a rule; some of them where only some are summed with another layer's, or where a grouped convolution reads them: each of its groups loses equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from stages.graph.flow import Flow, flow, group_slices
from stages.graph.layer import Graph, Layer

_Made = TypeVar("_Made")
_KINDS = ("conv2d", "linear", "depthwise", "batch_norm")


class Partition:
    """Channels in sets, which are cut finer and finer."""

    def __init__(self, labels: np.ndarray):
        self.labels, self.count = labels, int(labels.max(initial=0)) + 1

    def refine(self, ids: np.ndarray) -> None:
        """Tell apart the channels that ``ids`` has not, once, twice, ..."""
        found, times = np.unique(ids, return_counts=True)
        _, new = np.unique(np.stack([self.labels[found], times]), axis=1, return_inverse=True)
        self.labels[found] = self.count + new.ravel()
        self.count += int(new.max(initial=-1)) + 1


def group_pieces(graph: Graph, traced: Flow) -> Iterator[np.ndarray]:
    """The channels of each group of each grouped convolution, those that it reads and those that it makes."""
    for layer in graph:
        if layer.name in traced.reads and layer.attrs.get("groups", 1) > 1:
            for made, read in group_slices(layer):
                yield traced.of[layer.name][made]
                yield traced.reads[layer.name][read]


def _kind(layer: Layer) -> str:
    return "depthwise" if layer.is_depthwise else layer.op


def _unique_rows(graph: Graph, traced: Flow) -> np.ndarray:
    """Channels that stand twice in one layer's result that has weights of its own: no mask of one row a channel describes them."""
    twice = np.zeros(len(traced.pinned), bool)
    for layer in graph:
        if _kind(layer) in _KINDS and layer.name in traced.of:
            found, times = np.unique(traced.of[layer.name], return_counts=True)
            twice[found[times > 1]] = True
    return twice


def channel_classes(graph: Graph) -> dict[str, np.ndarray]:
    """For each layer, the class of each channel (dimension 1 of its result), or -1 where it must stay. Classes are numbered in order of appearance."""
    return _once(graph, _classes)[0]


def _classes(graph: Graph) -> tuple[dict[str, np.ndarray], Flow]:
    traced = flow(graph)
    parts = Partition(np.zeros(len(traced.pinned), int))
    for layer in graph:
        if _kind(layer) in _KINDS and layer.name in traced.of:
            parts.refine(traced.of[layer.name])
    for ids in group_pieces(graph, traced):
        parts.refine(ids)
    labels = np.where(traced.lasting | _unique_rows(graph, traced), -1, parts.labels)
    return _numbered({name: labels[ids] for name, ids in traced.of.items()}), traced


def _numbered(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same labels, numbered from 0 in order of appearance; -1 stays."""
    every = np.concatenate([[-1], *labels.values()])
    found, first, inverse = np.unique(every, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first)) - 1  # -1 came first
    numbers = rank[inverse][1:]
    ends = np.cumsum([len(ids) for ids in labels.values()])
    return dict(zip(labels, np.split(numbers, ends[:-1]), strict=True)) if len(found) else {}


def _rows(graph: Graph, classes: dict[str, np.ndarray], traced: Flow) -> dict[int, dict[str, tuple[str, np.ndarray]]]:
    """For each class the rows of each module that makes or scales its channels: module path -> (kind, rows), the rows in the order of the first module."""
    order = np.full(len(traced.pinned), -1)
    found: dict[int, dict[str, tuple[str, np.ndarray]]] = {}
    for layer in graph:
        if _kind(layer) not in _KINDS or layer.name not in classes:
            continue
        ids = traced.of[layer.name]
        new = ids[order[ids] < 0]
        order[new] = np.arange(len(new)) + order.max(initial=-1) + 1
        for number in np.unique(classes[layer.name]):
            rows = np.flatnonzero(classes[layer.name] == number)
            if number >= 0:
                found.setdefault(int(number), {}).setdefault(layer.module, (_kind(layer), rows[np.argsort(order[ids[rows]])]))
    return found


def couplings(graph: Graph) -> tuple[dict[str, str], ...]:
    """The removable channel classes as Scheme.coupled wants them: module path -> kind (conv2d, linear, depthwise, batch_norm), in order of appearance.

    Example, a residual block: ``({"conv1": "conv2d", "bn1": "batch_norm"}, {"stem": "conv2d", "conv2": "conv2d", "bn2": "batch_norm"})``. A module of which only some channels belong to the class
    has their places behind its kind: ``{"conv0": "conv2d", "norm": "batch_norm 64:96"}`` where ``norm`` follows a concatenation; see ``places``.
    """
    return tuple(dict(members) for members in _once(graph, _couplings))


def _couplings(graph: Graph) -> list[dict[str, str]]:
    classes, traced = _once(graph, _classes)
    sizes = {layer.module: len(traced.of[layer.name]) for layer in graph if layer.name in traced.of}
    members = [found for found in _rows(graph, classes, traced).values() if {"conv2d", "linear"} & {kind for kind, _ in found.values()}]
    return [{module: places_text(kind, rows, sizes[module]) for module, (kind, rows) in found.items()} for found in members]


def _once(graph: Graph, make: Callable[[Graph], _Made]) -> _Made:
    """``make(graph)``, kept with the graph, which never changes: a search asks for the same again for each candidate."""
    if make.__name__ not in vars(graph):
        vars(graph)[make.__name__] = make(graph)
    return vars(graph)[make.__name__]


def places_text(kind: str, rows: np.ndarray, size: int) -> str:
    """The inverse of ``places``."""
    if np.array_equal(rows, np.arange(size)):
        return kind
    return f"{kind} {','.join(f'{r.start}:{r.stop}:{r.step}' if r.step > 1 else f'{r.start}:{r.stop}' for r in runs(rows.tolist()))}"


def runs(numbers: Iterable[int]) -> list[range]:
    """``numbers`` as ascending arithmetic ranges, in order: [0, 2, 4, 9] -> [range(0, 5, 2), range(9, 10)]."""
    found: list[range] = []
    for n in numbers:
        last = found[-1] if found else None
        if last is not None and len(last) == 1 and n > last[0]:
            found[-1] = range(last[0], n + 1, n - last[0])
        elif last is not None and len(last) > 1 and n == last[-1] + last.step:
            found[-1] = range(last.start, n + 1, last.step)
        else:
            found.append(range(n, n + 1))
    return found


def places(member: str) -> tuple[str, list[int] | None]:
    """(kind, rows) of a member of a coupling: "batch_norm 64:96,100:104:2" -> ("batch_norm", [64, ..., 95, 100, 102]); None for all rows, in order."""
    kind, _, text = member.partition(" ")
    if not text:
        return kind, None
    return kind, [n for part in text.split(",") for n in range(*map(int, part.split(":")))]
