"""Layers of one channel class lose filters together, or none does; layers without a slot follow."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.graph import trace
from stages.schemes import LayerScheme, make_masks
from stages.schemes.masks import filter_classes, producers
from stages.search import Trial, make_sampler
from stages.search.scheme_space import SchemeSpace, scheme_space
from stages.tasks.zoo import npas_net


@cache
def gated() -> tuple[torch.nn.Module, SchemeSpace]:
    """npas_net: residual sums, and gates too small for a slot."""
    network = npas_net().eval()
    return network, scheme_space(trace(network, torch.zeros(1, 3, 32, 32)), ("none", "filter", "block-punched"), (2.0, 3.0), (8,))


def halves(space: SchemeSpace, choices: tuple) -> list[tuple[int, int]]:
    """Of each class: layers with a slot that lose filters, and all of them."""
    return [(sum(choices[i].pruning == "filter" for i in tied), len(tied)) for tied in space.ties.slots]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_settled_loses_whole_classes_and_changes_nothing_else(seed: int) -> None:
    space, rng = gated()[1], np.random.default_rng(seed)
    drawn = tuple(slot[int(rng.integers(len(slot)))] for slot in space.space.slots)
    (found,) = space.space.settled([drawn], set(), rng)
    assert space.space.check(found) == found
    assert all(lost in (0, count) for lost, count in halves(space, found))
    whole = {i for tied, (lost, count) in zip(space.ties.slots, halves(space, drawn), strict=True) if lost in (0, count) for i in tied}
    assert all(found[i] == drawn[i] for i in range(len(drawn)) if i in whole or not any(i in tied for tied in space.ties.slots))
    assert space.space.settled([found], set(), rng) == [found]


def test_a_proposal_that_is_known_once_settled_stays_as_it_was() -> None:
    space, rng = gated()[1], np.random.default_rng(0)
    drawn = [tuple(slot[int(rng.integers(len(slot)))] for slot in space.space.slots) for _ in range(8)]
    better = space.space.settled(drawn, set(), np.random.default_rng(1))
    moved = [(before, after) for before, after in zip(drawn, better, strict=True) if before != after]
    assert moved and len(set(better)) == 8
    assert space.space.settled([moved[0][0]], {moved[0][1]}, np.random.default_rng(1))[0] != moved[0][1]


def test_gates_follow_what_they_scale() -> None:
    network, space = gated()
    filters = tuple(next((c for c in slot if c.pruning == "filter" and c.rate == 2.0), slot[0]) for slot in space.space.slots)
    scheme = space.scheme(filters)
    gates = [path for paths in space.ties.others for path in paths if path.endswith("expand")]
    assert gates and all(scheme[path] == LayerScheme("keep", "filter", 2.0, 0) for path in gates)
    shrunk = {path for members, _ in filter_classes(scheme) for path in producers(members)}
    assert {space.layers[i].module for tied in space.ties.slots for i in tied} <= shrunk  # none of the pruning is void
    masks = make_masks(network, scheme)
    assert all(int(masks[f"{path}.weight"].flatten(1).any(1).sum()) == len(masks[f"{path}.weight"]) // 2 for path in gates)
    one = space.ties.slots[next(i for i, paths in enumerate(space.ties.others) if gates[0] in paths)][0]
    kept = (*filters[:one], space.space.slots[one][0], *filters[one + 1 :])
    assert gates[0] not in {path for path, layer in space.scheme(kept).layers.items() if layer.pruning == "filter"}


def test_what_strategies_ask_is_settled() -> None:
    _, space = gated()
    for name in ("random", "evolution", "npas", "anneal"):
        sampler = make_sampler(name, space.space.starting_with(()), 30, 1.0, 0)
        for step in range(6):
            asked = sampler.ask(3)
            assert all(lost in (0, count) for choices in asked for lost, count in halves(space, choices))
            sampler.tell(Trial(choices, 0.5 + 0.01 * i, latency_ms=0.9 + 0.1 * step) for i, choices in enumerate(asked))
