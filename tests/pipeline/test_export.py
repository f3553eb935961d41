"""npas export: the files hold what weights.pt holds, and other tools compute with them what PyTorch computes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file

from stages import export
from stages.artifacts import load_checkpoint, save_checkpoint, sha256, write_json
from stages.config import Config
from stages.errors import ArtifactError, UsageError
from stages.graph import trace
from stages.params import load
from stages.progress import Silent
from stages.schemes import uniform_scheme
from stages.schemes.prune import prune_
from stages.tasks import load_network, make_task

SETS = ("task.model=npas_tiny", "task.image_size=16", "task.threads=1", "task.train_limit=64")


def config(*formats: str) -> Config:
    return load(None, [*SETS, f"export.formats={','.join(formats)}"]).config


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pruned network of every scheme but filter, which is the current one."""
    monkeypatch.chdir(tmp_path)
    task = make_task(config("safetensors").task)
    module = task.model().eval()
    scheme = uniform_scheme(trace(module, task.example()), "block-punched", 3.0)
    masks = prune_(module, scheme)
    write_json("search_scheme/scheme.json", scheme.to_json())
    save_checkpoint("search_pruner/weights.pt", {
        "state_dict": module.state_dict(), "masks": masks, "model": "npas_tiny", "replacements": [], "filter_types": {}, "algorithm": "admm",
        "scheme_sha256": sha256("search_scheme/scheme.json"), "metrics": {"metric": "top1", "accuracy": {"pruned": {"val": 0.5, "test": 0.25}}},
    })  # fmt: skip
    return tmp_path


def test_safetensors_holds_the_very_weights_and_tells_where_they_come_from(project: Path) -> None:
    found = export.run(config("safetensors"), Silent())
    assert found == {"files": {"export/weights.safetensors": (project / "export/weights.safetensors").stat().st_size}}
    content, tensors = load_checkpoint("search_pruner/weights.pt"), load_file("export/weights.safetensors")
    assert tensors.keys() == content["state_dict"].keys() and all(torch.equal(tensors[name], tensor) for name, tensor in content["state_dict"].items())
    assert all((tensors[name][~mask] == 0).all() for name, mask in content["masks"].items()) and sum(int((~mask).sum()) for mask in content["masks"].values()) > 1000
    with safe_open("export/weights.safetensors", "pt") as file:
        told = file.metadata()
    assert (told["npas.model"], told["npas.algorithm"], told["npas.scheme_sha256"]) == ("npas_tiny", "admm", sha256("search_scheme/scheme.json"))
    assert json.loads(told["npas.accuracy"]) == {"val": 0.5, "test": 0.25} and "stem.0" in json.loads(told["npas.scheme"]) and len(json.loads(told["npas.mean"])) == 3


def test_onnx_computes_what_pytorch_computes_for_any_batch_with_the_same_zeros(project: Path) -> None:
    export.run(config("onnx", "safetensors"), Silent())
    task, content = make_task(config("onnx").task), load_checkpoint("search_pruner/weights.pt")
    network, session = load_network("search_pruner/weights.pt", task), onnxruntime.InferenceSession("export/model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        x = task.example(batch)
        with torch.no_grad():
            expected = network(x).numpy()
        (outputs,) = session.run(["output"], {"input": x.numpy()})
        np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-5)
    model = onnx.load("export/model.onnx")
    onnx.checker.check_model(model)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    shared = [name for name, mask in content["masks"].items() if name in weights and weights[name].shape == tuple(mask.shape)]
    assert len(shared) > 3 and all((weights[name][~content["masks"][name].numpy()] == 0).all() for name in shared)
    assert {p.key: p.value for p in model.metadata_props}["npas.algorithm"] == "admm" and str(project) not in str(model) and "/stages/" not in str(model)


def test_the_same_network_gives_the_same_bytes_and_what_is_not_asked_for_any_more_goes(project: Path) -> None:
    export.run(config("onnx"), Silent())
    first = Path("export/model.onnx").read_bytes()
    export.run(config("onnx"), Silent())
    assert Path("export/model.onnx").read_bytes() == first
    export.run(config("safetensors"), Silent())
    assert [path.name for path in Path("export").iterdir()] == ["weights.safetensors"]


def test_without_onnx_the_extra_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxscript" else find(name, *more))
    with pytest.raises(UsageError, match="needs the Python package onnxscript") as caught:
        export.run(config("onnx"), Silent())
    assert "npas[onnx]" in caught.value.hint


def test_weights_of_another_scheme_are_not_exported(project: Path) -> None:
    write_json("search_scheme/scheme.json", {"layers": {}, "coupled": []})
    with pytest.raises(ArtifactError, match="another scheme"):
        export.run(config("safetensors"), Silent())
