"""Successive halving: the published table, and what holds for every race."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import UsageError
from stages.pruners.halving import best, plan


def test_hyperband_s_most_aggressive_bracket():
    """Li et al. 2018, table 1, s = 4: R = 81, eta = 3. Its last line, one configuration for 81 epochs, is the run to the end here."""
    assert [(r.entries, r.epochs) for r in plan(81, 1, 3, 81)] == [(81, 1), (27, 3), (9, 9), (3, 27)]


def test_no_rung_is_longer_than_the_run_to_the_end_and_one_of_its_length_is_the_last():
    assert [(r.entries, r.epochs) for r in plan(20, 2, 3, 5)] == [(20, 2), (6, 5)]
    assert [(r.entries, r.epochs) for r in plan(20, 7, 3, 5)] == [(20, 5)]


def test_one_entry_needs_no_race():
    assert plan(1, 1, 3, 9) == ()


def test_a_budget_leaves_out_the_last_rungs_but_not_the_first():
    assert plan(9, 1, 3, 99, budget=18) == plan(9, 1, 3, 99) and len(plan(9, 1, 3, 99, budget=17.9)) == 1
    with pytest.raises(UsageError, match="takes 9 epochs"):
        plan(9, 1, 3, 99, budget=8)


@given(st.integers(2, 200), st.floats(0.1, 9), st.integers(2, 5), st.floats(0.1, 100))
def test_every_race(entries, first, eta, last):
    rungs = plan(entries, first, eta, last)
    assert rungs[0].entries == entries and rungs[-1].entries > 1
    assert all(a.entries // eta == b.entries and a.epochs < b.epochs <= min(a.epochs * eta * 1.0001, last) for a, b in zip(rungs, rungs[1:], strict=False))
    assert rungs[-1].entries // eta <= 1 or rungs[-1].epochs == last  # it ends because one is left, or because the run to the end isn't longer
    cap = rungs[0].cost * 1.5
    assert sum(r.cost for r in plan(entries, first, eta, last, cap)) <= cap


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1), st.integers(1, 5))
def test_the_best_go_on_the_earlier_of_equals_in_order(scores, count):
    chosen = best(scores, count)
    assert chosen == sorted(chosen) and len(chosen) == min(count, len(scores))
    for i in set(range(len(scores))) - set(chosen):
        assert all(scores[i] < scores[j] or (scores[i] == scores[j] and j < i) for j in chosen)
