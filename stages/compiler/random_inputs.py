"""The inputs with which compiled networks are tried. Imports numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SEED = 20210622


def random_inputs(shapes: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    """Standard normal inputs, always the same ones."""
    generator = np.random.default_rng(_SEED)
    return tuple(generator.standard_normal(tuple(s), dtype=np.float32) for s in shapes)
