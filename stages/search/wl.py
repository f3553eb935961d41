"""Weisfeiler-Lehman subtree histograms of labelled DAGs, and their normalised kernel's features (Shervashidze et al. 2011; NAS-BOWL, Ru et al. 2021). Imports numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from stages.search.space import LabelledGraph

Rounds = Sequence[Counter]  # label counts after 0, 1, 2 ... rounds


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


def wl_features(histograms: Sequence[Rounds], depth: int) -> np.ndarray:
    """Rows of unit length, (graphs, labels), whose dot products are the normalised kernel k = phi.phi' / (|phi| |phi'|) of the first ``depth`` rounds."""
    merged = [Counter({(h, label): count for h, counts in enumerate(rounds[: depth + 1]) for label, count in counts.items()}) for rounds in histograms]
    columns = {label: i for i, label in enumerate(dict.fromkeys(label for counts in merged for label in counts))}
    features = np.zeros((len(merged), max(1, len(columns))))
    for row, counts in enumerate(merged):
        for label, count in counts.items():
            features[row, columns[label]] = count
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
