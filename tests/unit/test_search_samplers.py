"""One conformance suite that every sampler passes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UsageError
from stages.search import SAMPLERS, TUNABLES, Sampler, Space, Trial, make_sampler

NAMES = sorted(SAMPLERS)
LADDERS = {"uniform", "global-magnitude"}  # these propose certain candidates only, and end
RANDOM = sorted({*NAMES} - LADDERS)
SLOTS = [("none", "filter", "punched"), (1, 2, 3), ("none", "filter", "punched"), (1, 2, 3)]
SPACE = Space(SLOTS, lambda c: ([f"{c[0]}|{c[1]}", f"{c[2]}|{c[3]}"], [(0, 1)]))


def options(name: str, **wanted) -> dict:
    return {k: v for k, v in wanted.items() if k in TUNABLES[name]}


def make(name: str, space: Space = SPACE, trials: int = 40, budget_ms: float | None = 4.0, seed: int = 0) -> Sampler:
    if name == "global-magnitude" and space.threshold is None:
        space = space.knowing(threshold=lambda t: level_at(space, t))
    return make_sampler(name, space, trials, budget_ms, seed, **options(name, pool=20, initial=6))


def level_at(space: Space, t: float) -> tuple:
    return tuple(slot[round(t * (len(slot) - 1))] for slot in space.slots)


def measured(choices) -> Trial:
    """Rates cost accuracy and buy speed; "punched" costs the least; a known optimum under the budget."""
    harm = {"none": 0.0, "filter": 0.1, "punched": 0.03}
    gain = {"none": 0.0, "filter": 1.2, "punched": 1.0}
    accuracy = 0.9 - sum(harm[choices[i]] * choices[i + 1] for i in (0, 2))
    latency = 6.0 - sum(gain[choices[i]] * (choices[i + 1] - 1) for i in (0, 2)) * 0.8
    if choices[0] == "filter" and choices[1] == 3:
        return Trial(choices, state="failed", error="RunnerCrashed: signal 11")
    return Trial(choices, accuracy, latency)


def play(sampler: Sampler, sizes, result=measured) -> list:
    asked = []
    for n in sizes:
        batch = sampler.ask(n)
        asked.append(batch)
        sampler.tell([result(c) for c in batch])
    return asked


@pytest.mark.parametrize("name", RANDOM)
def test_asks_distinct_candidates_of_the_space_until_it_is_exhausted_then_none(name):
    sampler = make(name)
    asked = list(itertools.chain.from_iterable(play(sampler, [7] * 13)))
    assert len(asked) == len(set(asked)) == 81 == SPACE.size
    assert set(asked) == set(itertools.product(*SLOTS))
    assert sampler.ask(3) == ()


@pytest.mark.parametrize("name", sorted(LADDERS))
def test_those_that_bisect_ask_distinct_rungs_then_none(name):
    sampler = make(name)
    asked = list(itertools.chain.from_iterable(play(sampler, [2] * 5)))
    assert 2 <= len(asked) == len(set(asked)) <= 3
    assert sampler.ask(3) == ()


@pytest.mark.parametrize("name", RANDOM)
def test_pending_candidates_are_not_asked_again(name):
    sampler = make(name)
    asked = [c for _ in range(20) for c in sampler.ask(5)]
    assert len(asked) == len(set(asked)) == 81


@pytest.mark.parametrize("name", NAMES)
def test_nor_is_what_was_told_without_being_asked(name):
    sampler = make(name)
    told = list(itertools.product(*SLOTS))[::2]
    sampler.tell([measured(c) for c in told])
    assert not {c for _ in range(10) for c in sampler.ask(5)} & set(told)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_run_other_seed_other_run(name):
    runs = [play(make(name, seed=seed), [5] * 6) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert (runs[0] == runs[2]) == (name in LADDERS)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), cut=st.integers(0, 5))
def test_replaying_the_calls_reproduces_the_state(name, sizes, cut):
    first, second = make(name), make(name)
    before = play(first, sizes)
    for batch in before:  # the same calls, the results told one by one
        assert second.ask(len(batch)) == batch
        for c in batch:
            second.tell([measured(c)])
    assert play(first, [cut, 4]) == play(second, [cut, 4])


@pytest.mark.parametrize("name", NAMES)
def test_trials_may_be_raised_between_asks(name):
    longer, raised = make(name, trials=40), make(name, trials=10)
    play(raised, [5, 5])
    raised.trials = 40
    assert len(play(longer, [5] * 4)[-1]) == len(play(raised, [5, 5])[-1]) == (0 if name in LADDERS else 5)


@pytest.mark.parametrize("name", NAMES)
def test_best_is_the_most_accurate_within_the_budget_and_the_faster_of_equals(name):
    sampler = make(name, budget_ms=4.0)
    assert sampler.best() is None
    a, b, c, d, e = list(itertools.product(*SLOTS))[:5]
    sampler.tell([Trial(a, 0.99, 4.1), Trial(b, state="failed", error="x"), Trial(c, None, 5.0, "infeasible")])
    assert sampler.best() is None
    sampler.tell([Trial(d, 0.8, 4.0), Trial(e, 0.8, 3.0)])
    assert sampler.best().choices == e
    assert make(name, budget_ms=None).best() is None


@pytest.mark.parametrize("name", NAMES)
def test_without_a_budget_the_most_accurate_wins(name):
    sampler = make(name, budget_ms=None)
    play(sampler, [6] * 4)
    assert sampler.best().accuracy == max(t.accuracy for t in sampler.told.values() if t.state == "complete")


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_when_every_trial_fails_or_is_too_slow(name):
    for result in (lambda c: Trial(c, state="failed", error="x"), lambda c: Trial(c, None, 9.0, "infeasible")):
        sampler = make(name)
        asked = list(itertools.chain.from_iterable(play(sampler, [5] * 20, result)))
        assert len(set(asked)) == (81 if name in RANDOM else 3)
        assert sampler.best() is None


@pytest.mark.parametrize("name", NAMES)
def test_first_candidates_come_first(name):
    first = [("punched", 2, "punched", 2), ("none", 1, "filter", 3)]
    sampler = make(name, Space(SLOTS, first=first))
    assert sampler.ask(1) + sampler.ask(2)[:1] == tuple(first)
    assert not set(first) & set(sampler.ask(10))


@pytest.mark.parametrize("name", NAMES)
def test_one_candidate_and_no_slot_and_huge_spaces(name):
    assert make(name, Space([("a",)])).ask(3) == (("a",),)
    assert make(name, Space([])).ask(2) == ((),)
    huge = make(name, Space([tuple(range(40))] * 30))
    asked = [c for batch in play(huge, [5] * 4, lambda c: Trial(c, sum(c) / 1200, 1.0)) for c in batch]
    assert len(set(asked)) == len(asked) and (len(asked) == 20 or name in LADDERS)


@pytest.mark.parametrize("name", NAMES)
def test_rejects_trials_of_another_space_and_missing_latencies(name):
    sampler = make(name)
    with pytest.raises(ValueError):
        sampler.tell([Trial(("none", 1), 0.5, 1.0)])
    with pytest.raises(ValueError):
        sampler.tell([Trial(("none", 1, "none", 9), 0.5, 1.0)])
    with pytest.raises(ValueError, match="latency"):
        sampler.tell([Trial(("none", 1, "none", 1), 0.5)])


def test_unknown_names_and_tunables_are_usage_errors():
    with pytest.raises(UsageError, match="npaz"):
        make_sampler("npaz", SPACE, 10)
    with pytest.raises(UsageError, match="pool"):
        make_sampler("random", SPACE, 10, pool=5)


PAIRS = Space([(0, 1, 2, 3)] * 6, lambda c: ([f"{i}:{x}" for i, x in enumerate(c)], [(i, i + 1) for i in range(5)]))


def additive(choices) -> Trial:
    """Six layers; level x saves x ms and costs ``harm[i] * x``: the optimum prunes the insensitive layers."""
    harm = (0.001, 0.05, 0.002, 0.06, 0.003, 0.07)
    return Trial(choices, 1 - sum(h * x for h, x in zip(harm, choices, strict=True)), 18.0 - sum(choices))


def regret(name: str, seed: int, trials: int = 60) -> float:
    sampler = make_sampler(name, PAIRS, trials, 9.0, seed, **options(name, pool=60, initial=10, q_lr=0.1))
    play(sampler, [5] * (trials // 5), additive)
    best = sampler.best()
    return (1.0 if best is None else 1 - best.accuracy) - (0.003 + 0.006 + 0.009)


@pytest.mark.parametrize(("name", "least"), [("npas", 5), ("bo", 5), ("ql", 4)])
def test_beats_chance_on_a_small_space(name, least):
    """Six seeds, 60 of 4096 candidates each: the gap to the known optimum, against that of random draws."""
    wins = sum(regret(name, seed) < regret("random", seed) for seed in range(6))
    assert wins >= least
