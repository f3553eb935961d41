"""Filter types through the pipeline: a search that must replace, and what search-pruner, compile and bench make of its network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages import bench, compile, search_pruner, search_scheme
from stages.artifacts import load_checkpoint, read_json, save_checkpoint, write_json
from stages.errors import WrongOutput
from stages.graph import trace
from stages.graph.rewrite import apply_replacements, find_replacements
from stages.params import load
from stages.progress import Silent
from stages.schemes import Scheme, check_zeros, resolve
from stages.tasks import fit, load_network, make_task

SETS = (
    "task.model=npas_tiny", "task.image_size=16", "task.threads=1", "task.train_limit=128", "search_scheme.trials=2", "search_scheme.pool=10", "search_scheme.batch=1",
    "search_scheme.schemes=none,block-punched", "search_scheme.rates=3", "search_scheme.blocks=8", "search_scheme.epochs=0.5", "search_scheme.budget_ratio=0.99",
    "search_scheme.runs=5", "search_scheme.grouping=false", "search_scheme.filter_types=3x3dw-1x1,1x1", "search_scheme.calibration=64", "search_pruner.algorithms=magnitude", "search_pruner.race_epochs=1",
    "search_pruner.epochs=1", "search_pruner.distill=yes", "bench.runs=10",
)  # fmt: skip


@pytest.mark.full  # the only part of it that test_end_to_end.py may miss is that a layer is replaced for sure
def test_a_replaced_layer_travels_from_the_search_to_the_bench(project: Path) -> None:
    from stages.devices import open_device

    config = load(None, SETS).config
    task = make_task(config.task)
    module = task.model().eval()
    replacements = find_replacements(trace(module, task.example()))
    module = apply_replacements(module, replacements)
    fit(module, task, epochs=1, lr=0.004, evaluate=False)
    listed = [r.to_json() for r in replacements]
    for path, made in (("pretrain/model.pt", []), ("replace_ops/model.pt", listed)):
        source = module if made else task.model()
        save_checkpoint(path, {"state_dict": source.state_dict(), "model": "npas_tiny", "replacements": made, "metrics": {}, "config": {}})
    write_json("probe/device.json", open_device("host").probe())

    search_scheme.run(config, Silent())
    scheme, trials = Scheme.from_json(read_json("search_scheme/scheme.json")), read_json("search_scheme/trials.json")
    types = scheme.filter_types
    assert set(types.values()) <= {"3x3dw-1x1", "1x1"} and {"stem.0", "blocks.0.layers.0.0", "blocks.3.layers.0.0"} == set(types)
    rows = {(row["layer"], row["filter_type"]): row["error"] for row in trials["reconstruction"]}
    assert set(rows) == {(path, kind) for path in types for kind in ("3x3dw-1x1", "1x1")} and all(0 < error < 1 for error in rows.values())

    network, dense = load_network("search_scheme/network.pt", task), load_network("replace_ops/model.pt", task)
    graph = trace(network, task.example())
    kept = {name: tensor for name, tensor in dense.state_dict().items() if name in network.state_dict()}
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in kept.items())  # unpruned, and what isn't replaced is as it was
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in network.state_dict().keys() - kept.keys()} == set(types)
    assert graph.macs < trace(dense, task.example()).macs

    search_pruner.run(config, Silent())
    content, resolved = load_checkpoint("search_pruner/weights.pt"), resolve(scheme, graph)
    assert content["filter_types"] == types
    check_zeros(content["state_dict"], resolved, content["masks"])
    compile.run(config, Silent())
    manifest = read_json("compile/host/manifest.json")
    assert manifest["macs"] <= graph.macs and {f"{path}.pw" for path in types} <= {row["layer"] for row in manifest["kernels"]}
    record = bench.run(config, Silent())
    assert record["correctness"]["ok"]

    wrong = load_checkpoint("search_pruner/weights.pt")  # bench rebuilds the network from weights.pt: other weights are noticed
    wrong["state_dict"] = {name: tensor * 1.5 if name.endswith("pw.weight") else tensor for name, tensor in wrong["state_dict"].items()}
    save_checkpoint("search_pruner/weights.pt", wrong)
    with pytest.raises(WrongOutput):
        bench.run(config, Silent())
