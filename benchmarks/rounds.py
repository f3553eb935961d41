"""Compiled networks timed against each other: one after the other in every round, so that a machine that changes its speed changes it for all."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from stages.compiler.model import CompiledModel


def in_rounds(models: Sequence[CompiledModel], x: np.ndarray, rounds: int) -> list[list[float]]:
    """Milliseconds of each model in each round. Before each timed run stands one that isn't: a model meets its own data in the caches, not its neighbour's."""
    samples: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for model, found in zip(models, samples, strict=True):
            model(x)
            before = time.perf_counter()
            model(x)
            found.append((time.perf_counter() - before) * 1e3)
    return samples
