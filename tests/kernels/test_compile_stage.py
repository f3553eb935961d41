"""npas compile on checkpoints of the tiny zoo network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel_kit import assert_equal, inputs, randomised
from torch import nn

from stages import compile as stage
from stages.artifacts import read_json, save_checkpoint, sha256, write_json
from stages.compiler import load_model
from stages.errors import ArtifactError
from stages.graph import trace
from stages.params import load
from stages.progress import Silent
from stages.schemes import prune_, uniform_scheme
from stages.tasks import make_task

CONFIG = load(None, ["task.model=npas_tiny"]).config


def checkpoints(module: nn.Module) -> nn.Module:
    """What the stages before write, with random weights; returns the pruned network."""
    task = make_task(CONFIG.task)
    for path in ("pretrain/model.pt", "replace_ops/model.pt", "search_scheme/network.pt"):
        save_checkpoint(path, {"state_dict": module.state_dict(), "model": "npas_tiny", "replacements": [], "config": {}, "metrics": {}})
    scheme = uniform_scheme(trace(module, task.example()), "block-punched", 3.0, 8)
    pruned = copy.deepcopy(module)
    masks = prune_(pruned, scheme)
    write_json("search_scheme/scheme.json", scheme.to_json())
    save_checkpoint("search_pruner/weights.pt", {"state_dict": pruned.state_dict(), "masks": masks})
    return pruned


@pytest.fixture
def dense(project: Path) -> nn.Module:
    return randomised(make_task(CONFIG.task).model())


def test_three_libraries_and_their_record(dense: nn.Module) -> None:
    pruned = checkpoints(dense)
    metrics = stage.run(CONFIG, Silent(), {"compile.tolerance": 0.001})
    x = inputs(*make_task(CONFIG.task).example().shape)
    for name, module in (("model", pruned), ("dense", dense), ("original", dense)):
        assert_equal(load_model(f"compile/host/{name}.so"), module, x)
    manifest, saved = read_json("compile/host/manifest.json"), read_json("compile/host/metrics.json")
    assert manifest["so_sha256"] == sha256("compile/host/model.so")
    assert saved["macs"] == metrics["macs"] == manifest["macs"] < metrics["macs_dense"]
    assert manifest["overrides"] == saved["overrides"] == {"compile.tolerance": 0.001}


def test_a_second_run_writes_the_same_bytes(dense: nn.Module) -> None:
    checkpoints(dense)
    digests = []
    for _ in range(2):
        stage.run(CONFIG, Silent())
        digests.append([sha256(f"compile/host/{name}") for name in ("model.so", "dense.so", "original.so", "manifest.json", "metrics.json")])
    assert digests[0] == digests[1]


def damage_shape(state: dict[str, torch.Tensor]) -> None:
    state[next(iter(state))] = torch.zeros(3)


def damage_name(state: dict[str, torch.Tensor]) -> None:
    state["nobody.weight"] = torch.zeros(3)


@pytest.mark.parametrize("damage", [damage_shape, damage_name])
def test_weights_of_another_network_are_refused(dense: nn.Module, damage: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = dict(checkpoints(dense).state_dict())
    damage(state)
    save_checkpoint("search_pruner/weights.pt", {"state_dict": state, "masks": {}})
    with pytest.raises(ArtifactError, match="doesn't fit"):
        stage.run(CONFIG, Silent())


def test_missing_artifacts_name_the_command_that_makes_them(project: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        stage.run(CONFIG, Silent())
    assert "npas search-scheme" in caught.value.hint
    assert not Path("compile").exists()
