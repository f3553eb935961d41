"""The space of schemes of a traced network, and what a search leaves behind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.errors import InfeasibleBudget, UsageError
from stages.graph import trace
from stages.schemes import DENSE, LayerScheme, Scheme, legal_schemes
from stages.search import Space, Trial, make_sampler
from stages.search.loop import Outcome
from stages.search.results import history_rows, infeasible, metrics, trial_rows
from stages.search.scheme_space import MOST_REPLACED, REPLACED, cut, edges, focus, nearest, scheme_space

SCHEMES, RATES, BLOCKS = ("none", "filter", "block-punched", "pattern"), (2.0, 3.0, 10.0), (8, 16)


@pytest.fixture(scope="module")
def graph():
    import torch

    from stages.tasks.zoo import npas_tiny

    return trace(npas_tiny().eval(), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def space(graph):
    return scheme_space(graph, SCHEMES, RATES, BLOCKS)


def test_slots_are_the_layers_worth_pruning_with_their_legal_schemes(graph, space):
    names = [layer.name for layer in graph.prunable]
    assert [layer.name for layer in space.layers] == [n for n in names if n in {layer.name for layer in space.layers}]  # topological
    for layer in graph.prunable:
        assert (layer in space.layers) == (layer.macs >= 0.005 * graph.macs)
    for layer, slot in zip(space.layers, space.space.slots, strict=True):
        assert set(slot) == set(legal_schemes(layer, graph, SCHEMES, RATES, BLOCKS))
        assert [c.rate for c in slot] == sorted(c.rate for c in slot)


def test_every_layer_gets_a_slot_when_no_share_is_asked(graph):
    assert len(scheme_space(graph, SCHEMES, RATES, BLOCKS, 0.0).layers) == len(graph.prunable)


def test_none_can_be_forbidden(graph):
    strict = scheme_space(graph, ("block-punched",), RATES, BLOCKS)
    assert not any(DENSE in slot for slot in strict.space.slots)


def test_nothing_to_prune_is_a_usage_error(graph):
    with pytest.raises(UsageError, match="No layer"):
        scheme_space(graph, ("none",), RATES, BLOCKS)


def test_a_candidate_becomes_a_scheme_that_names_every_prunable_layer(graph, space):
    choices = space.space.draw(np.random.default_rng(0))
    scheme = space.scheme(choices)
    assert set(scheme.layers) == {layer.module for layer in graph.prunable}
    assert [scheme[layer.module] for layer in space.layers] == list(choices)
    assert Scheme.from_json(scheme.to_json()) == scheme
    assert scheme.coupled


def test_first_are_the_extremes_and_ladders_have_every_uniform_rate(space):
    first = space.space.first
    assert first[0] == tuple(nearest(slot, "filter", 10.0, 8) for slot in space.space.slots)
    assert all(c == DENSE for c in first[-1])
    for rate in RATES:
        assert any(tuple(nearest(slot, "block-punched", rate, 8) for slot in space.space.slots) in ladder for ladder in space.space.uniform)


def test_nearest_takes_the_scheme_before_the_rate_before_the_block():
    slot = [DENSE, LayerScheme("keep", "block-punched", 2.0, 8), LayerScheme("keep", "block-punched", 10.0, 8), LayerScheme("keep", "block-punched", 10.0, 16)]
    assert nearest(slot, "block-punched", 9.0, 16) == slot[3]
    assert nearest(slot, "filter", 2.0, 8) == slot[1]  # no filter here
    assert nearest([DENSE], "pattern", 3.0, 8) == DENSE


def test_edges_follow_the_data_past_layers_without_a_slot(graph):
    layers = [graph["stem.0"], graph["blocks.0.layers.0.0"], graph["head.0"]]
    assert edges(graph, layers) == [(0, 1), (1, 2)] or edges(graph, layers) == [(0, 1), (0, 2), (1, 2)]
    assert edges(graph, [graph["stem.0"], graph["head.0"]]) == [(0, 1)]


def test_the_labelled_graph_tells_scheme_rate_and_block(space):
    labels, flow = space.space.graph(space.space.first[0])
    assert len(labels) == len(space.layers) * (1 + len(RATES))
    assert all(0 <= a < b < len(space.layers) for a, b in flow)
    other = space.space.graph(space.space.first[1])[0]
    assert sum(x != y for x, y in zip(labels, other, strict=True)) > 0
    assert labels[0].startswith("conv2d 3x3 2^")


def test_focused_draws_scatter_round_the_first_candidate(space):
    near = focus(space.space, [tuple(nearest(slot, "block-punched", 2.0, 8) for slot in space.space.slots)])
    rng = np.random.default_rng(0)
    wide, narrow = ([math.log(c.rate) for _ in range(60) for c in s.draw(rng)] for s in (space.space, near))
    assert abs(np.mean(narrow) - math.log(2)) < abs(np.mean(wide) - math.log(2)) / 2
    assert set(near.slots) == set(space.space.slots)


@pytest.fixture(scope="module")
def outcome(space):
    a, b, c, d = space.space.first[:4]
    trials = (Trial(a, 0.9, 1.0, dense_ms=2.0, ci95=(0.9, 1.1)), Trial(b, None, 3.0, "infeasible"), Trial(c, state="failed", error="x"), Trial(d, 0.95, 1.5))
    return Outcome(trials, trials[3], 0.8)


def test_rows_and_history(space, outcome):
    rows = trial_rows(outcome.trials, space)
    assert [row["state"] for row in rows] == ["complete", "infeasible", "failed", "complete"]
    assert [row["pareto"] for row in rows] == [True, False, False, True]
    assert set(rows[0]["choices"]) == {layer.module for layer in space.layers}
    assert [row["best"] for row in history_rows(outcome.trials, 1.2)] == [0.9] * 4
    assert [row["best"] for row in history_rows(outcome.trials, 2.0)] == [0.9, 0.9, 0.9, 0.95]
    assert history_rows(outcome.trials[1:3], 2.0)[-1]["best"] is None


def test_metrics(outcome):
    found = metrics(outcome, 3.0, 1.5)
    assert (found["accuracy"], found["latency_ms"], found["speedup"]) == (0.95, 1.5, 2.0)
    assert (found["trials"], found["feasible"], found["failed"], found["pareto"]) == (4, 2, 1, 2)
    assert metrics(Outcome((), None, 0.8), 3.0, 0.5)["accuracy"] is None


def test_infeasible_says_what_can_be_reached():
    error = infeasible(Outcome((), None, 0.8), 0.5)
    assert isinstance(error, InfeasibleBudget) and error.exit_code == 3 and error.best_ms == 0.8
    assert "0.500 ms" in error.message and "0.800 ms" in error.message and "--budget-ms 0.84" in error.hint


TYPES = {"stem.0": ("keep", "1x1", "3x3dw-1x1"), "blocks.0.layers.1.0": ("keep", "skip"), "blocks.3.layers.0.0": ("1x1", "3x3dw-1x1")}


@pytest.fixture(scope="module")
def typed(graph):
    return scheme_space(graph, SCHEMES, RATES, BLOCKS, types=TYPES)


def test_filter_types_add_a_few_choices_to_the_slots_that_may_have_them(space, typed):
    assert [layer.module for layer in typed.layers] == [layer.module for layer in space.layers]
    for layer, before, slot in zip(space.layers, space.space.slots, typed.space.slots, strict=True):
        kinds = TYPES.get(layer.module, ("keep",))
        assert {c for c in slot if c.filter_type == "keep"} == (set(before) if "keep" in kinds else set())
        replaced = [c for c in slot if c.filter_type != "keep"]
        expected = {LayerScheme(k, *how) for k in kinds if k not in ("keep", "skip") for how in ((), ("block-punched", 2.0, 8), ("block-punched", 3.0, 8))}
        assert set(replaced) == expected | ({LayerScheme("skip")} if "skip" in kinds else set()) and len(replaced) == len(set(replaced))
        assert [cut(c) for c in slot] == sorted(cut(c) for c in slot)


def test_uniform_candidates_keep_their_types_and_the_first_does_the_least_work(typed):
    slots, (least, *others) = typed.space.slots, typed.space.first
    assert [cut(c) for c in least] == [max(cut(c) for c in slot if c.filter_type != "skip") for slot in slots]
    for candidate in (*others, *(rung for ladder in typed.space.uniform for rung in ladder)):
        assert all(c.filter_type == "keep" for c, slot in zip(candidate, slots, strict=True) if any(x.filter_type == "keep" for x in slot))
    assert all([cut(rung[0]) for rung in ladder] == sorted(cut(rung[0]) for rung in ladder) for ladder in typed.space.uniform)


@pytest.mark.parametrize("focused", [False, True])
def test_random_draws_replace_few_layers(typed, focused):
    space = focus(typed.space, typed.space.first[2:]) if focused else typed.space
    shares = [sum(w for w, c in zip(space.weights(i), slot, strict=True) if c.filter_type != "keep") for i, slot in enumerate(space.slots)]
    expected = [{"stem.0": min(MOST_REPLACED, REPLACED / 3), "blocks.0.layers.1.0": min(MOST_REPLACED, REPLACED / 3), "blocks.3.layers.0.0": 1.0}.get(layer.module, 0.0) for layer in typed.layers]
    assert shares == pytest.approx(expected)


def test_labels_of_the_kernels_graph_tell_types_apart(typed):
    slot = next(i for i, layer in enumerate(typed.layers) if layer.module == "stem.0")
    dense = list(typed.space.first[-1])
    nodes = {}
    for choice in (DENSE, LayerScheme("1x1"), LayerScheme("1x1", "block-punched", 2.0, 8)):
        labels, edges_of = typed.space.graph((*dense[:slot], choice, *dense[slot + 1 :]))
        nodes[choice.label] = labels[slot]
        assert edges_of == edges(typed.graph, typed.layers)
    assert nodes["1x1"].endswith("|1x1") and nodes["1x1|block-punched/8 2x"].endswith("|1x1|block-punched/8 2x") and len(set(nodes.values())) == 3


def test_every_second_draw_varies_an_anchor():
    slots = [tuple(range(10))] * 12
    anchor = tuple(range(10)) + (0, 1)
    space = Space(slots, anchors=[anchor])
    rng = np.random.default_rng(0)
    alike = [sum(a == b for a, b in zip(space.draw(rng), anchor, strict=True)) for _ in range(2000)]
    far, near = [n for n in alike if n < 5], [n for n in alike if n >= 5]  # 1.2 and 9.3 slots on average, hardly any in between
    assert 0.45 < len(near) / len(alike) < 0.55
    assert abs(np.mean(near) - 12 * (0.75 + 0.25 / 10)) < 0.2 and abs(np.mean(far) - 1.2) < 0.2
    assert space.starting_with([anchor]).anchors == (anchor,)


def test_exploration_of_q_learning_takes_its_slots_from_one_draw():
    anchor = tuple(range(10))
    space = Space([tuple(range(10))] * 10, anchors=[anchor])
    sampler = make_sampler("ql", space, 1000, None, 0)
    alike = [sum(a == b for a, b in zip(choices, anchor, strict=True)) for choices in sampler.ask(300)]
    assert 0.4 < sum(n >= 5 for n in alike) / len(alike) < 0.6
