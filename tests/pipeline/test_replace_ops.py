"""The replace-ops stage on the tiny network: no exponential is left, accuracy and latency of before and after are told, it resumes and repeats exactly."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_pretrain import SETS
from training_kit import Killer

from stages import pretrain, replace_ops
from stages.artifacts import load_checkpoint, read_json, save_checkpoint, sha256
from stages.config import Config
from stages.errors import ArtifactError
from stages.graph import Graph
from stages.graph.rewrite import exponentials_left
from stages.graph.tracing import trace
from stages.params import load
from stages.progress import Silent
from stages.tasks import load_network, make_task

FILES = ("model.pt", "graph.json", "history.csv")  # metrics.json holds measured ms


def config(*more: str) -> Config:
    return load(None, [*SETS, "replace_ops.epochs=2", *more]).config


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pretrain.run(config(), Silent())
    yield folder / "pretrain" / "model.pt"


@pytest.fixture
def ready(project: Path, pretrained: Path) -> Path:
    """A project in which pretrain has run."""
    (project / "pretrain").mkdir()
    (project / "pretrain" / "model.pt").write_bytes(pretrained.read_bytes())
    return project


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on the compiler."""
    monkeypatch.setattr(replace_ops, "latencies", lambda *a: [2.0, 1.0])


def test_replaces_measures_and_tunes(ready: Path):
    told = Told()
    metrics = replace_ops.run(config(), told)
    task = make_task(config().task)
    module, original = load_network("replace_ops/model.pt", task), load_network("pretrain/model.pt", task)
    assert not exponentials_left(trace(module, task.example())) and len(exponentials_left(trace(original, task.example()))) == metrics["replacements"] > 5
    assert list(module.state_dict()) == list(original.state_dict())
    for when, network in (("before", original), ("after", module)):
        assert metrics["accuracy"][when] == {split: task.evaluate(network, split) for split in ("val", "test")}
    assert metrics["accuracy"]["untuned"].keys() == {"val", "test"}
    assert metrics["latency_ms"]["before"] > 0 < metrics["latency_ms"]["after"] and metrics["device"] == "host"
    assert read_json("replace_ops/metrics.json")["latency_ms"] == metrics["latency_ms"]
    document = read_json("replace_ops/graph.json")
    assert [layer.op for layer in Graph.from_json(document)] == [layer.op for layer in trace(module, task.example())]
    assert {r["after"] for r in document["replacements"]} == {"hardswish", "hardsigmoid"} and document["replacements"] == load_checkpoint(
        "replace_ops/model.pt"
    )["replacements"]
    assert [r["epoch"] for r in csv.DictReader(Path("replace_ops/history.csv").read_text().splitlines())] == ["1", "2"]
    assert any("silu -> hardswish" in line for line in told.lines) and any("ms" in line for line in told.lines)
    assert not [p for p in Path(".npas").rglob("*") if p.suffix in (".pt", ".so")]


def test_the_same_bytes_again_also_after_a_kill(ready: Path, unmeasured: None):
    replace_ops.run(config(), Silent())
    first = {name: sha256(f"replace_ops/{name}") for name in FILES}
    Path("replace_ops/model.pt").unlink()
    with pytest.raises(SystemExit):
        replace_ops.run(config(), Killer(1, SystemExit(137)))
    replace_ops.run(config(), Silent())
    assert {name: sha256(f"replace_ops/{name}") for name in FILES} == first


def test_nothing_to_replace_skips_the_tuning(project: Path, unmeasured: None):
    sets = ("task.model=mobilenet_v2", "task.image_size=32", "task.train_limit=64", "replace_ops.epochs=2")
    task = make_task(load(None, sets).config.task)
    save_checkpoint("pretrain/model.pt", {"state_dict": task.model().state_dict(), "model": "mobilenet_v2", "replacements": []})
    told = Told()
    metrics = replace_ops.run(load(None, sets).config, told)
    assert metrics["replacements"] == 0 and "nothing to replace, so nothing to fine-tune" in told.lines
    before, after = (load_checkpoint(f"{s}/model.pt")["state_dict"] for s in ("pretrain", "replace_ops"))
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert Path("replace_ops/history.csv").read_text() == "epoch,loss,top1\n"


def test_without_pretrain(project: Path):
    with pytest.raises(ArtifactError, match="pretrain/model.pt does not exist") as caught:
        replace_ops.run(config(), Silent())
    assert "npas pretrain" in caught.value.hint


def test_a_checkpoint_of_another_network(ready: Path):
    with pytest.raises(ArtifactError, match="does not belong to this network"):
        replace_ops.run(config("task.model=npas_net"), Silent())


def test_a_damaged_checkpoint(ready: Path):
    Path("pretrain/model.pt").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="not a readable checkpoint"):
        replace_ops.run(config(), Silent())
