"""The survey: of each kind of uniform scheme, the mildest rung within the budget, with few measurements."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from test_search_loop import Lines, Table, run

from stages.errors import RunnerCrashed
from stages.search import Space
from stages.search.evaluator import Rules
from stages.search.survey import climb

RATES = (1.0, 2.0, 3.0, 5.0, 8.0)
KINDS = {"filter": 1.0, "punched": 0.5, "pattern": 0.2}  # how much of its rate each brings
CHOICES = [(kind, rate) for rate in RATES for kind in KINDS]
LADDERS = [[((kind, rate),) * 4 for rate in RATES] for kind in KINDS]
SPACE = Space([CHOICES] * 4, first=[ladder[-1] for ladder in LADDERS], uniform=LADDERS)


def ms(choices) -> float:
    return sum(0.25 / (1 + KINDS[kind] * (rate - 1)) for kind, rate in choices)


def started(tmp_path, trials=20, budget=0.4, **table):
    table = Table(latency=ms, confirm=ms, **table)
    outcome = run(tmp_path, table, Rules(budget, trials, 4), SPACE, name="random")
    return [t.choices[0] for t in outcome.trials[:3]], table, outcome


def test_the_search_begins_with_the_mildest_of_each_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("test_search_loop.top1", lambda choices: 0.5)
    begin, table, outcome = started(tmp_path)
    assert begin[:2] == [("filter", 3.0), ("punched", 5.0)]  # 0.33 and 0.33 ms; a pattern of 8 takes 0.42 ms: that kind can't meet the budget
    assert outcome.trials[0].meets(0.4) and outcome.trials[1].meets(0.4)
    assert len(table.calls["latency"]) == len(set(table.calls["latency"]))


def test_more_trials_allow_more_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr("test_search_loop.top1", lambda choices: 0.5)
    four = [[((kind, rate), (kind, rate), (kind, rate), ("filter", 1.0)) for rate in RATES] for kind in KINDS]
    space = Space([CHOICES] * 4, first=[ladder[-1] for ladder in LADDERS], uniform=LADDERS + four)
    trials = run(tmp_path, Table(latency=ms, confirm=ms), Rules(0.45, 48, 4), space, name="random").trials
    assert sum(t.choices in {rung for ladder in (*LADDERS, *four) for rung in ladder} for t in trials[:5]) == 5


def test_a_rung_that_cannot_be_measured_is_stepped_over(tmp_path, monkeypatch):
    monkeypatch.setattr("test_search_loop.top1", lambda choices: 0.5)
    lines = Lines()
    table = Table({("latency", 6): RunnerCrashed("signal 4")}, latency=ms, confirm=ms)  # the filters' rate of 3, after the three fastest and a first round
    outcome = run(tmp_path, table, Rules(0.4, 20, 4), SPACE, lines, name="random")
    assert {t.choices[0] for t in outcome.trials[:2]} == {("filter", 5.0), ("punched", 5.0)}
    assert any("signal 4" in line for line in lines.lines)


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=12, unique=True), max_size=5), st.integers(0, 100))
def test_bisection_finds_the_mildest_of_each_ladder(times, budget):
    ladders = [[(i, t) for t in sorted(ladder, reverse=True)] for i, ladder in enumerate(times)]
    seen: list[tuple[int, int]] = []
    found = climb(ladders, lambda rung: rung in seen and rung[1] <= budget, seen.extend)
    wanted = {next(rung for rung in ladder if rung[1] <= budget) for ladder in ladders if ladder[-1][1] <= budget}
    assert set(found) == wanted and len(found) == len(wanted)
    assert len(seen) == len(set(seen)) <= sum(1 + math.ceil(math.log2(len(ladder) + 1)) for ladder in ladders)
    places = [len(ladders[i]) - ladders[i].index((i, t)) for i, t in found]
    assert places == sorted(places, reverse=True)
