"""The race: order, journal, failures, interruption, resumption."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from stages.config import SearchPruner
from stages.config import Task as TaskConfig
from stages.errors import ArtifactError, Interrupted, NpasError, UsageError
from stages.graph import trace
from stages.progress import Silent
from stages.pruners import PRUNERS, race
from stages.pruners.entry import Entry, entries
from stages.pruners.journal import Journal
from stages.pruners.magnitude import Magnitude
from stages.schemes import LayerScheme, Scheme, check_zeros, uniform_scheme
from stages.tasks import make_task

SETTINGS = SearchPruner(algorithms=("magnitude", "gradual"), race_epochs=1, race_eta=2, epochs=3)
CONFIG = TaskConfig(model="npas_tiny", image_size=16, train_limit=64, batch_size=32, threads=1)
ENTRIES = ["magnitude", "magnitude+distill", "gradual", "gradual+distill"]


@pytest.fixture(scope="module")
def setting():
    task = make_task(CONFIG)
    dense = task.model().eval()
    return task, dense, uniform_scheme(trace(dense, task.example()), "block-punched", 3.0)


class Screen(Silent):
    """Collects lines; ``stop`` raises after so many steps of bars."""

    def __init__(self, stop: int = 0):
        self.lines: list[str] = []
        self.earlier: list[str] = []
        self.left, self.steps = stop, 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, line: str = "") -> None:
        self.steps += 1
        self.earlier += [line] * ("(earlier run)" in line)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Broken(Magnitude):
    """Fails in training."""

    def after_step(self, step: int, total_steps: int) -> None:
        raise ZeroDivisionError("no such\nluck")


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "race.jsonl").read_text().splitlines()]


def test_entries_come_in_order():
    assert [e.label for e in entries(SETTINGS)] == ENTRIES
    assert [e.text for e in entries(SearchPruner(algorithms=("admm",), distill="yes"))] == ["admm + distillation"]
    assert entries(SearchPruner(algorithms=("admm",), distill="no", lr=0.1)) == [Entry("admm", False, 0.1, "admm")]
    rates = entries(SearchPruner(algorithms=("admm",), learning_rates=(0.01, 0.003)))
    assert [e.label for e in rates] == ["admm@0.01", "admm@0.003", "admm+distill@0.01", "admm+distill@0.003"] and rates[2].text == "admm + distillation, lr 0.01"


def test_the_best_go_on_the_winner_runs_to_the_end_and_everything_is_kept(setting, tmp_path):
    task, dense, scheme = setting
    before, screen = copy.deepcopy(dense.state_dict()), Screen()
    outcome = race(task, dense, scheme, SETTINGS, tmp_path, screen)
    first, second = outcome.rungs
    assert [row["entry"] for row in first] == ENTRIES and journal(tmp_path) == first + second
    assert {row["entry"] for row in second} == {row["entry"] for row in sorted(first, key=lambda row: -row["accuracy"])[:2]}  # sorted is stable: the earlier of equals
    assert outcome.winner.label == max(second, key=lambda row: row["accuracy"])["entry"]
    assert [(row["epochs"], len(row["curve"])) for row in first + second] == [(1, 1)] * 4 + [(2, 2)] * 2 and len(outcome.pruned.curve) == 3
    assert {row["entry"]: row["epochs"] for row in outcome.scores} == {row["entry"]: row["epochs"] for row in first + second} and len(outcome.scores) == 4
    assert screen.lines[1].startswith("race of 1 epochs 2/4  magnitude + distillation  top1 ") and screen.lines[4].startswith("race of 2 epochs 1/2  ")
    check_zeros(outcome.pruned.module, scheme, outcome.pruned.masks)
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in before.items())


def test_a_longer_rung_is_a_training_of_its_own_from_the_dense_weights(setting, tmp_path):
    task, dense, scheme = setting
    outcome = race(task, dense, scheme, SETTINGS, tmp_path)
    alone = race(task, dense, scheme, replace(SETTINGS, algorithms=(outcome.winner.algorithm,), distill=outcome.winner.distill and "yes" or "no", epochs=2), tmp_path / make(tmp_path, "alone"))
    assert alone.rungs == [] and alone.pruned.curve == next(row["curve"] for row in outcome.rungs[1] if row["entry"] == outcome.winner.label)


def test_the_run_to_the_end_is_not_repeated_when_the_last_rung_was_as_long(setting, tmp_path):
    task, dense, scheme = setting
    screen = Screen()
    outcome = race(task, dense, scheme, replace(SETTINGS, epochs=2), tmp_path, screen)
    assert screen.steps - len(screen.earlier) == 4 * 1 + 2 * 2 and len(screen.earlier) == 2 and len(outcome.pruned.curve) == 2


def test_a_race_with_more_entries_and_rungs_runs_only_what_is_new(setting, tmp_path):
    task, dense, scheme = setting
    small, screen = replace(SETTINGS, algorithms=("magnitude",)), Screen()
    race(task, dense, scheme, small, tmp_path)
    larger = race(task, dense, scheme, replace(SETTINGS, learning_rates=(0.003, 0.01)), tmp_path, screen)
    assert sum("(earlier run)" in line for line in screen.lines) >= 2 and [row["entry"] for row in larger.rungs[0]][:2] == ["magnitude@0.003", "magnitude@0.01"]
    assert race(task, dense, scheme, replace(SETTINGS, learning_rates=(0.003, 0.01)), tmp_path / make(tmp_path, "anew")).rungs == larger.rungs


def test_a_budget_ends_the_race_early(setting, tmp_path):
    task, dense, scheme = setting
    outcome = race(task, dense, scheme, replace(SETTINGS, race_budget=7), tmp_path)
    assert len(outcome.rungs) == 1 and outcome.winner.label == max(outcome.rungs[0], key=lambda row: row["accuracy"])["entry"]


def test_workers_side_by_side_find_the_same(setting, tmp_path):
    task, dense, scheme = setting
    alone = race(task, dense, scheme, SETTINGS, tmp_path / make(tmp_path, "alone"))
    table = {"magnitude": PRUNERS["magnitude"], "gradual": PRUNERS["gradual"], "admm": Broken}
    settings = replace(SETTINGS, workers="2", algorithms=(*SETTINGS.algorithms, "admm"), race_budget=8)
    outcome = race(task, dense, scheme, settings, tmp_path, table=table, make_task=partial(make_task, CONFIG))
    assert outcome.rungs[0][:4] == alone.rungs[0] and [row["error"] for row in outcome.rungs[0][4:]] == ["ZeroDivisionError: no such luck"] * 2


@pytest.mark.parametrize("stop", [1, 3, 6, 10])  # epochs: 4 entries of one, 2 of two, then three of the winner
def test_an_interrupted_race_goes_on_where_it_stopped(setting, tmp_path, stop):
    task, dense, scheme = setting
    whole = race(task, dense, scheme, SETTINGS, tmp_path / make(tmp_path, "whole"))
    folder = tmp_path / make(tmp_path, "cut")
    with pytest.raises(Interrupted, match="stopped"):
        race(task, dense, scheme, SETTINGS, folder, Screen(stop))
    finished = [row["entry"] for row in journal(folder)]
    screen = Screen()
    resumed = race(task, dense, scheme, SETTINGS, folder, screen)
    assert len(finished) == {1: 0, 3: 2, 6: 4, 10: 6}[stop] and sum("(earlier run)" in line for line in screen.lines) == len(finished)
    assert screen.steps - len(screen.earlier) == 4 * 1 + 2 * 2 + 3 - stop  # no epoch that was finished is run again
    assert resumed.rungs == whole.rungs and resumed.winner == whole.winner and resumed.pruned.curve == whole.pruned.curve
    states = [x.pruned.module.state_dict() for x in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def make(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def test_a_failing_entry_is_a_row_and_is_tried_again(setting, tmp_path):
    task, dense, scheme = setting
    settings, screen = SearchPruner(algorithms=("magnitude", "gradual"), distill="no", race_epochs=1, epochs=1), Screen()
    outcome = race(task, dense, scheme, settings, tmp_path, screen, table={"magnitude": Broken, "gradual": PRUNERS["gradual"]})
    assert outcome.winner.label == "gradual" and outcome.scores[0]["error"] == "ZeroDivisionError: no such luck" and outcome.scores[0]["accuracy"] is None
    assert screen.lines[0] == "race of 1 epochs 1/2  magnitude  failed: ZeroDivisionError: no such luck"
    mended = race(task, dense, scheme, settings, tmp_path)
    assert not mended.scores[0]["error"] and [row["entry"] for row in journal(tmp_path)] == ["magnitude", "gradual", "magnitude"]


def test_when_every_entry_fails_the_first_error_is_told(setting, tmp_path):
    task, dense, scheme = setting
    with pytest.raises(NpasError, match="no such luck"):
        race(task, dense, scheme, SearchPruner(algorithms=("magnitude",), race_epochs=1), tmp_path, table={"magnitude": Broken})


def test_a_diverging_entry_fails_by_itself(setting, tmp_path):
    task, dense, scheme = setting
    with pytest.raises(NpasError, match="diverged"):
        race(task, dense, scheme, SearchPruner(algorithms=("magnitude",), race_epochs=1, lr=1e30), tmp_path)


def test_a_scheme_of_another_network_is_a_usage_error(setting, tmp_path):
    task, dense, _ = setting
    with pytest.raises(UsageError, match="'features.9'"):
        race(task, dense, Scheme({"features.9": LayerScheme("keep", "block-punched", 2.0, 8)}), SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_journal_survives_a_cut_line_and_refuses_damage_and_company(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as first:
        first.append({"entry": "a"})
        with pytest.raises(UsageError, match="at work"):
            Journal(path)
    path.write_bytes(path.read_bytes() + b'{"entry": "b", "curv')
    with Journal(path) as again:
        assert again.rows == [{"entry": "a"}]
        again.append({"entry": "c"})
    assert path.read_bytes() == b'{"entry": "a"}\n{"entry": "c"}\n'
    path.write_bytes(b"damage\n")
    with pytest.raises(ArtifactError, match="damaged"):
        Journal(path)
