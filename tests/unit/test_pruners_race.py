"""The race: order, journal, failures, interruption, resumption."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from stages.config import SearchPruner
from stages.config import Task as TaskConfig
from stages.errors import ArtifactError, Interrupted, NpasError, UsageError
from stages.graph import trace
from stages.progress import Silent
from stages.pruners import PRUNERS, race
from stages.pruners.journal import Journal
from stages.pruners.magnitude import Magnitude
from stages.pruners.race import entries
from stages.schemes import LayerScheme, Scheme, check_zeros, uniform_scheme
from stages.tasks import make_task

SETTINGS = SearchPruner(algorithms=("magnitude", "gradual"), race_epochs=1, epochs=2)


@pytest.fixture(scope="module")
def setting():
    task = make_task(TaskConfig(model="npas_tiny", image_size=16, train_limit=64, batch_size=32, threads=1))
    dense = task.model().eval()
    return task, dense, uniform_scheme(trace(dense, task.example()), "block-punched", 3.0)


class Screen(Silent):
    """Collects lines; ``stop`` raises after so many steps of bars."""

    def __init__(self, stop: int = 0):
        self.lines: list[str] = []
        self.left = stop

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, line: str = "") -> None:
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
    assert [e.label for e in entries(SETTINGS)] == ["magnitude", "magnitude+distill", "gradual", "gradual+distill"]
    assert [e.text for e in entries(SearchPruner(algorithms=("admm",), distill="yes"))] == ["admm + distillation"]
    assert [e.label for e in entries(SearchPruner(algorithms=("admm",), distill="no"))] == ["admm"]


def test_the_best_entry_runs_to_the_end_and_everything_is_kept(setting, tmp_path):
    task, dense, scheme = setting
    before, screen = copy.deepcopy(dense.state_dict()), Screen()
    outcome = race(task, dense, scheme, SETTINGS, tmp_path, screen)
    assert [row["entry"] for row in outcome.scores] == [e.label for e in entries(SETTINGS)] and journal(tmp_path) == outcome.scores
    assert max(row["accuracy"] for row in outcome.scores) == next(row["accuracy"] for row in outcome.scores if row["entry"] == outcome.winner.label)
    assert all(len(row["curve"]) == 1 and not row["error"] for row in outcome.scores) and len(outcome.pruned.curve) == 2
    assert screen.lines[1].startswith("race 2/4  magnitude + distillation  top1 ")
    check_zeros(outcome.pruned.module, scheme, outcome.pruned.masks)
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("stop", [1, 3, 6])  # epochs: 4 entries of one, then two of the winner
def test_an_interrupted_race_goes_on_where_it_stopped(setting, tmp_path, stop):
    task, dense, scheme = setting
    whole = race(task, dense, scheme, SETTINGS, tmp_path / make(tmp_path, "whole"))
    folder = tmp_path / make(tmp_path, "cut")
    with pytest.raises(Interrupted, match="stopped"):
        race(task, dense, scheme, SETTINGS, folder, Screen(stop))
    finished = [row["entry"] for row in journal(folder)]
    screen = Screen()
    resumed = race(task, dense, scheme, SETTINGS, folder, screen)
    assert len(finished) == min(stop - 1, 4) and sum("(earlier run)" in line for line in screen.lines) == len(finished)
    assert resumed.scores == whole.scores and resumed.winner == whole.winner and resumed.pruned.curve == whole.pruned.curve
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
    assert screen.lines[0] == "race 1/2  magnitude  failed: ZeroDivisionError: no such luck"
    mended = race(task, dense, scheme, settings, tmp_path)
    assert not mended.scores[0]["error"] and [row["entry"] for row in journal(tmp_path)] == ["magnitude", "gradual", "magnitude"]


def test_when_every_entry_fails_the_first_error_is_told(setting, tmp_path):
    task, dense, scheme = setting
    with pytest.raises(NpasError, match="no such luck"):
        race(task, dense, scheme, SearchPruner(algorithms=("magnitude",), race_epochs=1), tmp_path, table={"magnitude": Broken})


def test_a_diverging_entry_fails_by_itself(setting, tmp_path):
    task, dense, scheme = setting
    with pytest.raises(NpasError, match="diverged"):
        race(task, dense, scheme, SearchPruner(algorithms=("magnitude",), distill="no", race_epochs=1, lr=1e30), tmp_path)


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
