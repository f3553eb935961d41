"""What uniform and global-magnitude know of a network: one rate, or one threshold, for all its layers as candidates of its space. Imports scheme_space and space; the network's weights as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from torch import nn

from stages.search.scheme_space import SchemeSpace, nearest
from stages.search.space import Choices

LEAST = 1e-3  # share of a layer's weights that stays at any threshold, for a rate must be finite


def knowing_one_for_all(space: SchemeSpace, network: nn.Module, schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int]) -> SchemeSpace:
    """``space`` with a ladder of rates for each scheme and block (``Space.uniform``), and with ``Space.threshold`` from the weights of ``network``."""
    wanted = [(s, b) for s in schemes if s != "none" for b in (blocks if s == "block-punched" else (min(blocks),))]
    steps = {w: [("none", 1.0, 0), *((w[0], rate, w[1]) for rate in sorted(rates))] for w in wanted}
    ladders = [[tuple(nearest(slot, *step) for slot in space.space.slots) for step in ladder] for ladder in steps.values()]  # type: ignore[arg-type]
    mildest, block = min(rates), min(blocks)

    @cache
    def magnitudes() -> list[np.ndarray]:
        return [np.sort(np.abs(network.get_parameter(f"{layer.module}.weight").detach().numpy().ravel())) for layer in space.layers]

    @cache
    def pooled() -> np.ndarray:
        return np.sort(np.concatenate(magnitudes()))

    def threshold(t: float) -> Choices:
        """Every layer at the rate (block-punched, the smallest block) nearest to what the threshold that prunes the share ``t`` of all weights leaves of it."""
        limit = pooled()[min(len(pooled()) - 1, int(t * len(pooled())))]
        kept = [1 - np.searchsorted(m, limit) / len(m) for m in magnitudes()]
        found = [1 / max(LEAST, share) for share in kept]
        kinds = ["none" if rate < math.sqrt(mildest) else "block-punched" for rate in found]
        return tuple(nearest(slot, k, rate, block) for slot, k, rate in zip(space.space.slots, kinds, found, strict=True))  # type: ignore[arg-type]

    return replace(space, space=space.space.knowing(uniform=ladders, threshold=threshold))
