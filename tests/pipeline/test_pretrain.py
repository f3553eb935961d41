"""The pretrain stage: trains or takes weights, resumes, and writes the same bytes again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from training_kit import Killer

from stages import pretrain
from stages.artifacts import load_checkpoint, read_json, sha256
from stages.config import Config
from stages.errors import UsageError
from stages.params import load
from stages.progress import Silent
from stages.tasks import load_network, make_task

SETS = ("task.model=npas_tiny", "task.image_size=16", "task.train_limit=128", "task.batch_size=32", "task.threads=1", "pretrain.epochs=3", "pretrain.lr=0.01")


def config(*more: str) -> Config:
    return load(None, [*SETS, *more]).config


def test_writes_what_later_stages_read(project: Path):
    metrics = pretrain.run(config(), Silent(), {"pretrain.epochs": 3})
    assert read_json("pretrain/metrics.json")["accuracy"] == metrics["accuracy"] and metrics["epochs"] == 3
    task = make_task(config().task)
    module = load_network("pretrain/model.pt", task)
    assert {split: task.evaluate(module, split) for split in ("val", "test")} == metrics["accuracy"]
    content = load_checkpoint("pretrain/model.pt")
    assert content["replacements"] == [] and content["model"] == "npas_tiny"
    assert content["config"]["pretrain"]["lr"] == 0.01 and content["overrides"] == {"pretrain.epochs": 3}
    rows = list(csv.DictReader(Path("pretrain/history.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["1", "2", "3"] and float(rows[-1]["top1"]) == pytest.approx(metrics["accuracy"]["val"])
    json.dumps(metrics)
    assert not list(Path(".npas").rglob("*.pt"))


def test_the_same_bytes_again_also_after_a_kill(project: Path):
    pretrain.run(config(), Silent())
    first = {name: sha256(f"pretrain/{name}") for name in ("model.pt", "metrics.json", "history.csv")}
    Path("pretrain/model.pt").unlink()
    with pytest.raises(SystemExit):
        pretrain.run(config(), Killer(2, SystemExit(137)))
    assert not Path("pretrain/model.pt").exists() and list(Path(".npas").rglob("*.pt"))
    pretrain.run(config(), Silent())
    assert {name: sha256(f"pretrain/{name}") for name in first} == first


def test_given_weights_are_evaluated_not_trained(project: Path):
    task = make_task(config().task)
    state = task.model().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, "trained.pth")
    metrics = pretrain.run(config("task.weights=trained.pth"), Silent())
    assert metrics["epochs"] == 0 and Path("pretrain/history.csv").read_text() == "epoch,loss,top1\n"
    saved = load_checkpoint("pretrain/model.pt")["state_dict"]
    assert all(torch.equal(saved[k], v) for k, v in state.items())
    assert metrics["accuracy"]["val"] == task.evaluate(task.model())


def test_missing_weights(project: Path):
    with pytest.raises(UsageError, match="No weights file nowhere.pth"):
        pretrain.run(config("task.weights=nowhere.pth"), Silent())
