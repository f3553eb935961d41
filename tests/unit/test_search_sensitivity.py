"""Estimates before any trial: which choices are measured, what lies between them, the journal, and the integer program that starts from them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.config import Config
from stages.errors import DeviceLost, NpasError
from stages.progress import Silent
from stages.schemes import DENSE, LayerScheme
from stages.search import Space, make_sampler
from stages.search.evaluator import Evaluator
from stages.search.sensitivity import between, estimate, representatives
from stages.search.trials import Journal

RATES, BLOCKS = (2.0, 2.5, 3.0, 5.0, 7.0, 10.0), (8, 16, 32)
PUNCHED = [LayerScheme("keep", "block-punched", rate, block) for rate in RATES for block in BLOCKS]
FILTERS = [LayerScheme("keep", "filter", rate) for rate in RATES]
TYPES = [LayerScheme("1x1"), LayerScheme("1x1", "block-punched", 2.0, 8), LayerScheme("1x1", "block-punched", 5.0, 8), LayerScheme("skip")]
SLOT = (DENSE, *FILTERS, *PUNCHED, *TYPES)
WEIGHT, MS = (1.0, 3.0, 0.2, 1.5), (4.0, 1.0, 2.0, 3.0)  # of the layers of a toy network: how much they matter, how long they take
REST = 0.5


def loss_of(choice: LayerScheme) -> float:
    """Linear in ln(rate), then in ln(block): what ``between`` takes it for."""
    types = {"keep": 0.0, "1x1": 1.0, "skip": 3.0}[choice.filter_type]
    return types + math.log(choice.rate) * (0.5 + 0.1 * math.log(max(1, choice.block)))


def share_of(choice: LayerScheme) -> float:
    """Linear in 1 / rate."""
    if choice.filter_type == "skip":
        return 0.0
    return (0.1 + 0.9 / choice.rate) / (1 if choice.filter_type == "keep" else 9)


def loss(choices):
    return sum(w * loss_of(c) for w, c in zip(WEIGHT, choices, strict=True))


def layer_ms(choices):
    return [t * share_of(c) for t, c in zip(MS, choices, strict=True)] + [REST]


def asking(damage, times) -> Evaluator:
    def never(*_):
        raise AssertionError

    return Evaluator(never, never, never, never, damage=damage, layer_ms=times)


@pytest.fixture
def space() -> Space:
    return Space([SLOT, SLOT[:7], SLOT, (DENSE, *TYPES[:1])])


@pytest.fixture
def journal(space, tmp_path):
    with Journal(tmp_path / "journal.jsonl", space) as journal:
        yield journal


@given(st.sets(st.sampled_from(SLOT), min_size=1).map(lambda chosen: [c for c in SLOT if c in chosen]))
def test_representatives_bracket_every_choice_of_their_kind(slot):
    found = representatives(slot)
    assert [c for c in slot if c in found] == found and representatives(found) == found
    for c in slot:
        alike = [r for r in found if (r.filter_type, r.pruning) == (c.filter_type, c.pruning)]
        assert min(r.block for r in alike) <= c.block <= max(r.block for r in alike)
        assert 0 < len(alike) <= 6
    assert between(slot, {c: loss_of(c) for c in slot}, math.log) == tuple(map(loss_of, slot))


def test_what_lies_between_is_interpolated():
    measured = representatives(SLOT)
    assert len(measured) == 14 < len(SLOT)
    assert between(SLOT, {c: loss_of(c) for c in measured}, math.log) == pytest.approx([loss_of(c) for c in SLOT])
    assert between(SLOT, {c: share_of(c) for c in measured}, lambda rate: -1 / rate) == pytest.approx([share_of(c) for c in SLOT])
    assert between(SLOT, {DENSE: 0.0, FILTERS[0]: 2.0}, math.log)[-1] == 2.0  # nothing of the kind is known: as bad as the worst
    assert between(SLOT, {}, math.log) == (0.0,) * len(SLOT)


def test_estimates_of_an_additive_network_are_its_costs(space, journal):
    costs = estimate(space, asking(loss, layer_ms), journal, Silent())
    for i, slot in enumerate(space.slots):
        assert costs.loss[i] == pytest.approx([WEIGHT[i] * loss_of(c) for c in slot])
        assert costs.latency_ms[i] == pytest.approx([MS[i] * share_of(c) for c in slot])
    assert costs.base_ms == REST


@pytest.mark.parametrize("strategy", [("ilp", {}), ("npas", {"warm_start": "ilp"})])
def test_the_first_proposal_is_the_best_within_the_budget(space, journal, strategy):
    budget = 0.4 * (sum(MS) + REST)
    known = space.knowing(costs=estimate(space, asking(loss, layer_ms), journal, Silent()))
    (first,) = make_sampler(strategy[0], known, 24, budget, **strategy[1]).ask(1)
    assert sum(layer_ms(first)) <= budget + 1e-6
    others = [tuple(space.decode([i, j, k, 0])) for i in range(len(SLOT)) for j in range(7) for k in range(len(SLOT))]
    assert loss(first) <= min(loss(c) for c in others if sum(layer_ms(c)) <= budget) + 1e-6


def test_a_continued_search_measures_nothing_again_and_a_few_candidates_suffice(space, journal, tmp_path):
    asked = Counter()

    def counted(choices):
        asked["loss"] += 1
        if asked["loss"] == 10:
            raise KeyboardInterrupt
        return loss(choices)

    def timed(choices):
        asked["layers"] += 1
        return layer_ms(choices)

    with pytest.raises(KeyboardInterrupt):
        estimate(space, asking(counted, timed), journal, Silent())
    first = estimate(space, asking(counted, timed), journal, Silent())
    assert asked["loss"] - 1 == 1 + 2 * 13 + 3 + 1  # the mildest candidate once, every other representative of each slot
    assert asked["layers"] <= 2 * 14
    journal.close()
    with Journal(tmp_path / "journal.jsonl", space) as again:
        total = dict(asked)
        assert estimate(space, asking(counted, timed), again, Silent()) == first and asked == total


def test_what_breaks_is_left_out_and_named_but_a_lost_device_ends_it(space, journal):
    class Says(Silent):
        lines: list[str] = []

        def say(self, line):
            self.lines.append(line)

    def breaks(choices):
        if any(c.filter_type == "skip" for c in choices):
            raise NpasError("No kernel for that.")
        return loss(choices)

    costs = estimate(space, asking(breaks, lambda c: [math.nan] * 5 if c[0] == TYPES[0] else layer_ms(c)), journal, Says())
    assert costs.loss[0][-1] == max(costs.loss[0])
    assert sum("No kernel for that" in line for line in Says.lines) == 2 and any("nan" in line for line in Says.lines)

    def lost(choices):
        raise DeviceLost("Gone.")

    with pytest.raises(DeviceLost):
        estimate(space, asking(lost, layer_ms), Journal(journal.path.with_name("other"), space), Silent())
    with pytest.raises(NpasError, match="could be measured"):
        estimate(space, asking(breaks, lambda c: 1 / 0), Journal(journal.path.with_name("third"), space), Silent())


def test_damage_is_0_for_the_network_itself_and_knows_no_running_statistics():
    from stages.graph import trace
    from stages.schemes import uniform_scheme
    from stages.search.accuracy import FastEvaluation
    from stages.search.candidate import Candidates
    from stages.tasks import make_task

    torch.set_num_threads(1)
    config = replace(Config(), task=replace(Config().task, model="npas_tiny", train_device="cpu"))
    task = make_task(config.task)
    network = task.model().eval()
    graph = trace(network, task.example())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def damages():
        evaluation = FastEvaluation(config, task, Candidates(network, graph))
        return [evaluation.damage(uniform_scheme(graph, "block-punched", rate, 8)) for rate in (1.0, 3.0)]

    found = damages()
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor += 1.0
    assert damages() == found


def test_layer_times_of_a_compiled_network_are_those_of_its_slots():
    from stages.graph import trace
    from stages.search.candidate import searched_types
    from stages.search.scheme_space import by_slot, scheme_space
    from stages.tasks import make_task

    config = Config()
    task = make_task(replace(config.task, model="npas_tiny", train_device="cpu"))
    network = task.model().eval()
    graph = trace(network, task.example())
    space = scheme_space(graph, ("none", "filter"), (2.0,), (8,), types=searched_types(network, graph, config.search_scheme))
    ms = {"": 1.0, "blocks.1.layers.0.0": 2.0, "blocks.1.layers.1.0": 4.0, "blocks.0.layers.1.0.pw": 8.0}
    found = by_slot(space, ms)
    at = [layer.module for layer in space.layers]
    assert found[-1] == 1.0 and found[at.index("blocks.0.layers.1.0")] == 8.0  # a part of a replaced layer
    assert found[at.index("blocks.1.layers.0.0")] == 6.0  # with the depthwise convolution that follows it, which isn't searched
