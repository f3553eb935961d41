"""One rate or one threshold for a whole network, on the small embedded network."""

from __future__ import annotations

import numpy as np
import torch

from stages.graph import trace
from stages.search import make_sampler
from stages.search.one_for_all import knowing_one_for_all
from stages.search.scheme_space import scheme_space
from stages.search.space import Trial
from stages.tasks.zoo import npas_tiny

SCHEMES, RATES, BLOCKS = ("none", "filter", "block-punched", "pattern"), (2.0, 3.0, 5.0, 10.0), (8, 16)


def test_ladders_get_harder_and_one_threshold_prunes_small_weights_first():
    torch.manual_seed(0)
    network = npas_tiny().eval()
    with torch.no_grad():
        network.head[0].weight *= 0.01
    space = knowing_one_for_all(scheme_space(trace(network, torch.randn(1, 3, 32, 32)), SCHEMES, RATES, BLOCKS), network, SCHEMES, RATES, BLOCKS)
    for ladder in space.space.uniform:
        rates = [np.mean([1 / c.rate for c in rung]) for rung in ladder]
        assert rates == sorted(rates, reverse=True) and rates[0] == 1
    assert len({tuple(ladder) for ladder in space.space.uniform}) == 4  # filter, two blocks, pattern
    rungs = [space.space.threshold(t) for t in np.linspace(0, 1, 21)]
    kept = np.array([[1 / c.rate for c in rung] for rung in rungs])
    assert (np.diff(kept, axis=0) <= 0).all() and (kept[0] == 1).all() and np.allclose(kept[-1], 0.1)
    head = [layer.module for layer in space.layers].index("head.0")
    assert (kept[:, head] <= kept.min(1) + 1e-9).all()
    for name in ("uniform", "global-magnitude"):
        sampler = make_sampler(name, space.space, 40, budget_ms=0.4)
        while batch := sampler.ask(3):
            sampler.tell([Trial(c, 0.5 + np.mean([1 / x.rate for x in c]) / 2, float(np.mean([1 / x.rate for x in c]))) for c in batch])
        assert 0.2 < sampler.best().latency_ms <= 0.4
