"""Grouping through the pipeline: the order that the search chose is in network.pt, and search-pruner, compile and bench work on it unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages import bench, compile, search_pruner, search_scheme
from stages.artifacts import load_checkpoint, read_json, save_checkpoint, write_json
from stages.graph import trace
from stages.graph.orders import orbits
from stages.params import load
from stages.progress import Silent
from stages.schemes import Scheme, check_zeros
from stages.schemes.grouping import kept_energy, regroup_
from stages.tasks import load_network, make_task

SETS = (
    "task.model=npas_tiny", "task.image_size=16", "task.threads=1", "task.train_limit=128", "search_scheme.trials=1", "search_scheme.initial=1", "search_scheme.batch=1",
    "search_scheme.schemes=block-punched", "search_scheme.rates=3", "search_scheme.blocks=4", "search_scheme.epochs=0.5", "search_scheme.budget_ms=1000", "search_scheme.runs=5",
    "search_scheme.filter_types=keep", "search_scheme.ablate=false", "search_scheme.grouping=true", "search_pruner.algorithms=magnitude", "search_pruner.race_epochs=1", "search_pruner.epochs=1",
    "search_pruner.distill=yes", "search_pruner.feature_weight=0.5", "bench.runs=10",
)  # fmt: skip


@pytest.mark.full
def test_the_order_of_the_search_travels_to_the_bench(project: Path) -> None:
    from stages.devices import open_device

    config = load(None, SETS).config
    task = make_task(config.task)
    dense = task.model().eval()
    for path in ("pretrain/model.pt", "replace_ops/model.pt"):
        save_checkpoint(path, {"state_dict": dense.state_dict(), "model": "npas_tiny", "replacements": [], "metrics": {}, "config": {}})
    write_json("probe/device.json", open_device("host").probe())

    search_scheme.run(config, Silent())
    written = read_json("search_scheme/scheme.json")
    scheme, network, graph = Scheme.from_json(written), load_network("search_scheme/network.pt", task), trace(dense, task.example())
    torch.testing.assert_close(network(task.example()), dense(task.example()), rtol=1e-4, atol=1e-5)
    assert kept_energy(network.state_dict(), scheme) > kept_energy(dense.state_dict(), scheme)
    sizes = {orbit.name: len(orbit) for orbit in orbits(graph)}
    assert written["orders"] and all(len(order) == sizes[name] for name, order in written["orders"].items())
    assert {name: list(order) for name, order in regroup_(dense, graph, scheme).items()} == written["orders"]

    search_pruner.run(config, Silent())
    content = load_checkpoint("search_pruner/weights.pt")
    check_zeros(content["state_dict"], scheme, content["masks"])
    compile.run(config, Silent())
    assert bench.run(config, Silent())["correctness"]["ok"]
