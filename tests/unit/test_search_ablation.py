"""What each layer of the winner costs and saves: rows by hand, resumed from the journal, failures as rows."""

from __future__ import annotations

import pytest

from stages.errors import DeviceLost
from stages.progress import Silent
from stages.schemes import DENSE, LayerScheme
from stages.search import Space
from stages.search.ablation import ablate
from stages.search.evaluator import Evaluator, Inline
from stages.search.trials import Journal, Timing

HARD, MILD = LayerScheme("keep", "block-punched", 5.0, 8), LayerScheme("keep", "block-punched", 2.0, 8)
LAYERS = ("a", "b", "c", "d")
WINNER = (HARD, DENSE, MILD, MILD)
SPACE = Space([(DENSE, MILD, HARD)] * 2 + [(MILD, HARD)] * 2)  # two layers may not stay dense: the ablation leaves the space


def evaluator(calls: list, fail=()) -> Evaluator:
    def one_shot(choices):
        calls.append(choices)
        if choices in fail:
            raise RuntimeError("out of memory")
        return 0.9 - sum(0.01 * (c.rate - 1) for c in choices)

    def latency(choices):
        return Timing(sum(1 / c.rate for c in choices))

    return Evaluator(Inline(lambda c, rule: None), latency, latency, one_shot)


def run(path, calls, **more):
    with Journal(path / "journal.jsonl", SPACE) as journal:
        return ablate(WINNER, LAYERS, DENSE, more.get("evaluator") or evaluator(calls, **more), journal, Silent())


def test_one_row_for_each_pruned_layer(tmp_path):
    rows = run(tmp_path, [])
    assert [(r["layer"], r["choice"]) for r in rows] == [("a", HARD.label), ("c", MILD.label), ("d", MILD.label)]
    assert [r["accuracy_without"] - r["accuracy_with"] for r in rows] == pytest.approx([0.04, 0.01, 0.01])
    assert [r["latency_without"] - r["latency_with"] for r in rows] == pytest.approx([0.8, 0.5, 0.5])
    assert all(r["error"] is None for r in rows)


def test_journalled_rows_are_not_evaluated_again(tmp_path):
    first, again = [], []
    rows = run(tmp_path, first)
    assert len(first) == 4 and run(tmp_path, again) == rows and not again


def test_a_failure_is_a_row_and_a_lost_device_is_not(tmp_path):
    rows = run(tmp_path, [], fail={(HARD, DENSE, DENSE, MILD)})
    assert [r["error"] for r in rows] == [None, "RuntimeError: out of memory", None] and rows[1]["accuracy_without"] is None

    def lost(_):
        raise DeviceLost("gone")

    (tmp_path / "b").mkdir()
    with pytest.raises(DeviceLost):
        run(tmp_path / "b", [], evaluator=Evaluator(Inline(lambda c, rule: None), lost, lost, lambda c: 0.5))
    assert len(run(tmp_path / "b", [])) == 3
