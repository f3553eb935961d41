"""npas lifelong on the tiny network: what it writes, compiled networks, interruption, and bad inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import Killer

from npas_cli.app import main
from stages import learn_task
from stages.artifacts import load_checkpoint, read_json
from stages.compiler import load_model
from stages.errors import UsageError
from stages.lifelong import Commons
from stages.lifelong.network import example_of, network_of
from stages.params import load
from stages.progress import Silent
from stages.tasks import make_task

SILENT = Silent()
SETS = ("task.model=npas_tiny", "task.image_size=8", "task.threads=1", "task.train_limit=64", "lifelong.learn_epochs=1", "lifelong.epochs=2")


def run(*more: str, progress: Silent = SILENT) -> dict:
    return learn_task.run(load(None, [*SETS, *(f"lifelong.{text}" for text in more)]).config, progress)


def commons() -> Commons:
    return Commons.from_checkpoint(load_checkpoint("lifelong/network.pt"))


@pytest.fixture
def state(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPAS_STATE", str(project / "state"))
    return project / "state"


def test_tasks_are_learnt_in_turn_and_each_compiles(state: Path) -> None:
    first = run("name=one")
    with pytest.raises(KeyboardInterrupt):
        run("name=two", progress=Killer(2))
    assert read_json("lifelong/tasks.json") == {"schema": "npas-tasks/1"} | first and list(state.rglob("*.pt"))
    told = run("name=two", "compile=one,two")
    assert not list(state.rglob("*.pt")) and told["libraries"] == {name: f"lifelong/{name}.so" for name in ("one", "two")}
    assert told["tasks"]["one"]["digest"] == first["tasks"]["one"]["digest"]
    assert {"schema": "npas-tasks/1"} | told == read_json("lifelong/tasks.json") | {"libraries": told["libraries"]}
    row = told["tasks"]["two"]
    assert row["uses"] == pytest.approx(row["own"] + 0.9 * told["tasks"]["one"]["own"], abs=0.03) and told["free"] == pytest.approx(1 / 3, abs=0.03)
    task, both = make_task(load(None, SETS).config.task), commons()
    for name in ("one", "two"):
        module, example = network_of(both, name), example_of(both)
        for split in ("val", "test"):
            assert task.evaluate(module, split) == pytest.approx(told["tasks"][name]["accuracy"][split])
        (output,) = load_model(told["libraries"][name])(example.numpy())
        with torch.no_grad():
            assert np.allclose(output, module(example).numpy(), atol=1e-4)


def test_a_trained_network_is_where_it_starts_from_whatever_its_head(state: Path, project: Path) -> None:
    task = make_task(load(None, SETS).config.task)
    weights = task.model().state_dict()
    weights |= {name: torch.zeros(7, *weights[name].shape[1:]) for name in ("classifier.weight", "classifier.bias")}
    weights["stem.0.weight"] = torch.zeros_like(weights["stem.0.weight"])
    torch.save(weights, project / "trained.pt")
    config = load(None, [*SETS, "lifelong.name=one", "task.weights=trained.pt"]).config
    _, module = learn_task._begin(None, task, config)
    assert not module.state_dict()["stem.0.weight"].any() and torch.equal(module.state_dict()["classifier.weight"], task.model().state_dict()["classifier.weight"])
    torch.save({name: tensor for name, tensor in weights.items() if name != "head.0.weight"}, project / "trained.pt")
    with pytest.raises(UsageError, match=r"head\.0\.weight"):
        learn_task._begin(None, task, config)


def test_every_refusal_is_a_sentence_and_a_way_on(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["lifelong", *(part for text in SETS for part in ("-S", text)), *words]) == 2
        error = capsys.readouterr().err
        assert error.count("Error: ") == error.count("Hint: ") == 1
        return error

    assert "No task is named" in refused()
    assert "can't be the name" in refused("--name", "a/b")
    assert "lifelong/network.pt does not exist" in refused("--compile", "one")
    run("name=one")
    assert "learnt already" in refused("--name", "one")
    assert "No task 'two'" in refused("--compile", "two")
    assert "3x8x8" in refused("--name", "two", "-S", "task.image_size=16")
    assert "planned for 1 tasks" in refused("--name", "two", "--tasks", "1")
