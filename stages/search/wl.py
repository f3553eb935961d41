"""Weisfeiler-Lehman subtree histograms of labelled DAGs, and their normalised kernel's features (Shervashidze et al. 2011; NAS-BOWL, Ru et al. 2021). Imports numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from stages.search.space import LabelledGraph

Rounds = Sequence[Counter]  # label counts after 0, 1, 2 ... rounds
Numbered = tuple[tuple[np.ndarray, np.ndarray], ...]  # the same by Numbering


def wl_histograms(graph: LabelledGraph, depth: int) -> list[Counter]:
    """Counts of the labels after 0, 1 ... ``depth`` rounds.

    In each round a node's label becomes (its own label, the sorted labels of its predecessors): what flows into a layer, and from how far, tells it from others.

    >>> wl_histograms((["a", "b"], [(0, 1)]), 1)[1] == Counter({("a", ()): 1, ("b", ("a",)): 1})
    True
    """
    labels, edges = graph
    nodes = list(labels) if isinstance(labels, Mapping) else list(range(len(labels)))
    current: dict[Hashable, Hashable] = {node: labels[node] for node in nodes}  # type: ignore[index, call-overload]
    before: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    for source, target in edges:
        before[target].append(source)
    histograms = [Counter(current.values())]
    for _ in range(depth):
        current = {node: (current[node], tuple(sorted((current[p] for p in before[node]), key=repr))) for node in nodes}
        histograms.append(Counter(current.values()))
    return histograms


class Numbering:
    """Histograms with numbers for labels, so that each label (a tuple of tuples) is hashed once and not in every kernel."""

    def __init__(self) -> None:
        self._numbers: list[dict[Hashable, int]] = []

    def __call__(self, rounds: Rounds) -> Numbered:
        """For each round: the numbers of its labels, and their counts."""
        self._numbers += [{} for _ in rounds[len(self._numbers) :]]
        return tuple(
            (np.array([numbers.setdefault(label, len(numbers)) for label in counts], int), np.fromiter(counts.values(), float, len(counts)))
            for numbers, counts in zip(self._numbers, rounds, strict=False)
        )


def wl_counts(graphs: Sequence[Numbered]) -> list[np.ndarray]:
    """One matrix for each round, (graphs, labels that occur): how often each graph has each label."""
    found = []
    for rounds in zip(*graphs, strict=True):
        rows = np.repeat(np.arange(len(graphs)), [len(numbers) for numbers, _ in rounds])
        labels, columns = np.unique(np.concatenate([numbers for numbers, _ in rounds]), return_inverse=True)
        counts = np.zeros((len(graphs), max(1, len(labels))))
        counts[rows, columns] = np.concatenate([c for _, c in rounds])
        found.append(counts)
    return found


def wl_features(counts: Sequence[np.ndarray], depth: int) -> np.ndarray:
    """Rows of unit length, (graphs, labels), whose dot products are the normalised kernel k = phi.phi' / (|phi| |phi'|) of the first ``depth`` rounds."""
    features = np.concatenate(counts[: depth + 1], axis=1)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
