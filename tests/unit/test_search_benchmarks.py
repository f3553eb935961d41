"""What the benchmarks of the search compute from their measurements: the schedule of many workers, rank correlation, early stopping in retrospect."""

import itertools
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from benchmarks import regret_chart
from benchmarks.fast_evaluation import early_stopping, rank_correlation
from benchmarks.workers import Trial, drawn, simulate
from stages.search.early_stop import POINTS

SECONDS = st.floats(0.0, 10.0)
TRIALS = st.lists(st.builds(Trial, SECONDS, SECONDS), min_size=1, max_size=30)


@given(TRIALS, st.integers(1, 8), st.integers(1, 8), SECONDS, st.integers(1, 3))
def test_a_schedule_is_neither_faster_than_its_work_nor_slower_than_one_thing_at_a_time(trials, workers, batch, propose, devices):
    took = simulate(trials, workers, batch, propose, devices)
    rounds = -(-len(trials) // batch)
    measuring, training = sum(t.measure for t in trials), sum(t.train for t in trials)
    least = max(training / workers, measuring / devices, rounds * propose, max(propose + t.measure + t.train for t in trials))
    assert least - 1e-6 <= took <= rounds * propose + measuring + training + 1e-6


def test_schedules_done_by_hand():
    even = [Trial(0.0, 1.0)] * 8
    assert [simulate(even, n, 4, 0.0) for n in (1, 2, 4, 8)] == [8.0, 4.0, 2.0, 1.0]  # 2 * batch candidates are open
    assert simulate(even, 64, 2, 0.0) == 2.0  # which bounds what more workers bring
    assert simulate([Trial(1.0, 1.0)] * 8, 64, 8, 0.0) == 9.0 and simulate([Trial(1.0, 1.0)] * 8, 64, 8, 0.0, devices=4) == 3.0  # one device measures one after the other
    assert simulate([Trial(1.0, 3.0)] * 3, 1, 3, 0.5) == 0.5 + 1.0 + 9.0  # measuring the next hides behind training
    assert simulate([Trial(1.0, 0.0)] * 3, 1, 3, 0.0) == 3.0  # what isn't trained needs no worker


def test_drawn_trials_have_measured_times_and_the_share_that_was_trained():
    times = {"trials": 10, "training": [2.0, 3.0], "measuring": [0.5]}
    trials = drawn(times, 2000)
    assert {t.train for t in trials} == {0.0, 2.0, 3.0} and {t.measure for t in trials} == {0.5}
    assert np.mean([t.train > 0 for t in trials]) == pytest.approx(0.2, abs=0.03)
    assert trials == drawn(times, 2000)


def test_kendalls_tau_counts_pairs():
    rng = np.random.default_rng(0)
    fast, full = rng.permutation(24) / 24, rng.permutation(24) / 24
    found = rank_correlation(list(fast), list(full), resamples=200)
    agree = [np.sign(fast[i] - fast[j]) * np.sign(full[i] - full[j]) for i, j in itertools.combinations(range(24), 2)]
    assert found["tau"] == pytest.approx(np.mean(agree))
    assert found["ci95"][0] < found["tau"] < found["ci95"][1]
    assert rank_correlation(list(fast), list(fast), resamples=2)["tau"] == pytest.approx(1.0)


def row(loss, accuracy):
    return {"fast": accuracy, "curve": [[(i + 1) / POINTS, loss] for i in range(POINTS)]}


def test_early_stopping_in_retrospect():
    losses = np.linspace(0.1, 1.0, 24)
    telling = early_stopping([row(x, 1 - 0.1 * np.log(x)) for x in losses], 0.95, orders=10)  # the loss tells the accuracy exactly
    assert telling["false_stops"] == telling["accuracy_lost"] == telling["improvements_lost"] == 0
    assert 0.3 < telling["saved"] < telling["stopped"] < 1
    silent = early_stopping([row(x, 1 + 0.1 * np.log(x)) for x in losses], 0.95, orders=10)  # a lower loss means a worse network: the rule draws no line
    assert silent["stopped"] == silent["saved"] == silent["accuracy_lost"] == 0
    rng = np.random.default_rng(0)
    noise = [row(float(x), float(a)) for x, a in zip(rng.uniform(0.1, 1, 24), rng.uniform(0.9, 1, 24), strict=True)]
    assert early_stopping(noise, 0.99, orders=10)["stopped"] <= early_stopping(noise, 0.8, orders=10)["stopped"]


def test_the_curves_of_regret_are_drawn_to_scale():
    drawn = ElementTree.fromstring(regret_chart.chart({"npas": [0.5, 0.04, 0.0], "random & more": [0.02, 0.02, 0.02]}))
    lines = [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in drawn.iter() if e.tag.endswith("polyline")]
    x, y = regret_chart.across(0, 3), regret_chart.Axis(0, regret_chart.MOST, regret_chart.HEIGHT - regret_chart.BOTTOM, regret_chart.TOP)
    assert lines[0] == [(x(2), y(4)), (x(3), y(4)), (x(3), y(0))]  # 50 % is beyond the picture
    assert {point[1] for point in lines[1]} == {y(2)} and (lines[1][0][0], lines[1][-1][0]) == (x(1), x(3))
    assert {"npas", "random & more"} <= {e.text for e in drawn.iter()}
