"""task.model and task.weights: the zoo, torchvision, the user's networks, and every way that they can be wrong."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stages.artifacts import save_checkpoint
from stages.config import Task as TaskConfig
from stages.errors import ArtifactError, UsageError
from stages.tasks import load_network, make_task, vision
from stages.tasks.models import build_model, load_weights
from stages.tasks.zoo import ZOO


@pytest.fixture(scope="module")
def task():
    return make_task(TaskConfig(model="npas_tiny", image_size=16, train_limit=64))


def macs(module: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def test_zoo_sizes():
    assert 25e6 < macs(ZOO["npas_net"](10)) < 45e6
    assert macs(ZOO["npas_tiny"](10)) < 0.5e6


@pytest.mark.parametrize("name", ZOO)
def test_zoo_has_every_ingredient(name):
    modules = list(ZOO[name](10).modules())
    convs = [m for m in modules if isinstance(m, nn.Conv2d)]
    assert {c.kernel_size for c in convs if c.groups == c.in_channels > 1} == {(3, 3), (5, 5)}
    assert sum(c.kernel_size == (3, 3) and c.groups == 1 for c in convs) >= 3
    assert any(isinstance(m, nn.SiLU) for m in modules) and any(isinstance(m, nn.Sigmoid) for m in modules)
    assert all(c.out_channels % 16 == 0 for c in convs)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state():
    before = torch.get_rng_state()
    a, b, c = (build_model("npas_tiny", 10, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["stem.0.weight"], c["stem.0.weight"])


def test_torchvision_gets_the_classes_of_the_data():
    assert build_model("mobilenet_v2", 7, 0).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


USER_MODELS = """
import torch
from torch import nn
import torch.nn.functional as F
def plain(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
def sized(num_classes=99): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
    def forward(self, x): return self.fc(x.mean((2, 3)))
def raises(): raise ValueError("no such layer")
def a_dict(): return {}
def wrong_classes(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
def large_images(): return nn.Sequential(nn.Conv2d(3, 8, 99), nn.Flatten())
class Pair(nn.Module):
    def forward(self, x): return x, x
number = 1
class Incomplete:
    def __init__(self, config): self.config = config
class Broken:
    def __init__(self, config): raise OSError("no data here")
"""


@pytest.fixture
def user_models(project, monkeypatch):
    for name, text in (
        ("npas_user_models", USER_MODELS),
        ("npas_user_broken", "import nonexistent_package_xyz"),
        ("npas_user_syntax", "def ("),
        ("npas_user_crash", "1 / 0"),
    ):
        (project / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(project)])  # restored afterwards; resolve() itself must add the current directory


@pytest.mark.parametrize("name", ["plain", "sized", "Net"])
def test_user_model(user_models, name):
    assert make_task(TaskConfig(model=f"npas_user_models:{name}", image_size=8)).model()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


BAD_MODELS = {
    "npas_user_models:raises": "can't be built: ValueError: no such layer",
    "npas_user_models:a_dict": "returned a dict, not an nn.Module",
    "npas_user_models:wrong_classes": r"returns shape \(1, 4\)",
    "npas_user_models:large_images": "doesn't run on 3x8x8 images",
    "npas_user_models:Pair": "returns tuple",
    "npas_user_models:number": "is a int, not something to call",
    "npas_user_models:sizedd": "has no 'sizedd'",
    "npas_user_nowhere:net": "No module 'npas_user_nowhere'",
    "npas_user_broken:net": "can't be imported: No module named 'nonexistent_package_xyz'",
    "npas_user_syntax:net": "can't be imported: SyntaxError",
    "npas_user_crash:net": "can't be imported: ZeroDivisionError",
    "npas_nett": "Unknown model 'npas_nett'",
    "mobilenet_v9": "Unknown model 'mobilenet_v9'",
    "fasterrcnn_resnet50_fpn": "Unknown model",
}


@pytest.mark.parametrize("spec", BAD_MODELS)
def test_bad_model(user_models, spec):
    with pytest.raises(UsageError, match=BAD_MODELS[spec]) as caught:
        make_task(TaskConfig(model=spec, image_size=8)).model()
    assert caught.value.hint
    suggestions = {"npas_nett": "npas_net", "mobilenet_v9": "mobilenet_v2", "npas_user_models:sizedd": "sized"}
    assert spec not in suggestions or f"Did you mean '{suggestions[spec]}'?" in caught.value.hint


BAD_TASKS = {
    "clasification": "Unknown task", "npas_user_models:Incomplete": "lacks model, example", "npas_user_models:Broken": "can't be made: OSError: no data here", "npas_user_models:None_": "has no 'None_'",
}  # fmt: skip


@pytest.mark.parametrize("spec", BAD_TASKS)
def test_bad_task(user_models, spec):
    with pytest.raises(UsageError, match=BAD_TASKS[spec]):
        make_task(TaskConfig(task=spec))


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="sees no CUDA device"):
        make_task(TaskConfig(train_device="cuda"))


# --- weights


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_weights_in_the_usual_forms(tmp_path, wrap):
    source, target = (build_model("npas_tiny", 10, seed) for seed in (1, 2))
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_bad_weights(tmp_path):
    module, path = build_model("npas_tiny", 10, 0), tmp_path / "w.pt"
    with pytest.raises(UsageError, match="No weights file"):
        load_weights(module, path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="Can't read the weights"):
        load_weights(module, path)
    torch.save(module, path)
    with pytest.raises(UsageError, match="Can't read the weights"):
        load_weights(module, path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UsageError, match="are no state_dict"):
        load_weights(module, path)
    torch.save(build_model("npas_tiny", 12, 0).state_dict(), path)
    with pytest.raises(UsageError, match=r"2 keys of another shape: classifier.weight \(\(12, 64\) instead of \(10, 64\)\)"):
        load_weights(module, path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UsageError, match=r"keys missing: stem.0.weight, stem.1.weight, stem.1.bias, \.\.\.\."):
        load_weights(module, path)
    torch.save(module.state_dict() | {"a": torch.ones(1)}, path)
    with pytest.raises(UsageError, match="1 key unknown: a"):
        load_weights(module, path)


def test_load_network_gives_back_what_was_saved(tmp_path, task):
    module = build_model("npas_tiny", 10, 5).eval()
    save_checkpoint(tmp_path / "m.pt", {"state_dict": module.state_dict(), "model": "npas_tiny", "replacements": []})
    found = load_network(tmp_path / "m.pt", task)
    assert not found.training and torch.equal(found(task.example()), module(task.example()))


def test_load_network_replays_filter_types(tmp_path, task):
    from stages.graph.retype import retype_modules_

    module, types = build_model("npas_tiny", 10, 5).eval(), {"stem.0": "1x1-3x3dw-1x1", "blocks.3.layers.0.0": "1x1", "blocks.0.layers.1.0": "skip"}
    retype_modules_(module, types)
    content = {"state_dict": module.state_dict(), "model": "npas_tiny", "replacements": [], "filter_types": types}
    save_checkpoint(tmp_path / "m.pt", content)
    assert torch.equal(load_network(tmp_path / "m.pt", task)(task.example()), module(task.example()))
    save_checkpoint(tmp_path / "m.pt", content | {"filter_types": {}})
    with pytest.raises(ArtifactError, match="does not belong to this network"):
        load_network(tmp_path / "m.pt", task)


def test_load_network_of_another_model(tmp_path, task):
    save_checkpoint(tmp_path / "m.pt", {"state_dict": build_model("npas_tiny", 12, 0).state_dict(), "model": "npas_tiny"})
    with pytest.raises(ArtifactError, match="does not belong to this network") as caught:
        load_network(tmp_path / "m.pt", task)
    assert "task.model npas_tiny" in caught.value.hint


# --- torchvision


def test_wrong_torchvision_for_this_torch(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy", "torch (==1.13.0)", "scipy ; extra == 'scipy'"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.14.0")
    with pytest.raises(UsageError, match=r"torchvision 0.14.0 needs torch==1.13.0, but torch") as caught:
        vision.check_versions()
    assert caught.value.hint == "Run: pip install 'torchvision==0.14.0' 'torch==1.13.0'"


def test_no_torchvision(monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    with pytest.raises(UsageError, match="not installed"):
        vision.check_versions()


def test_the_installed_pair_is_accepted_and_nms_exists():
    vision.check_versions()
    assert hasattr(torch.ops.torchvision, "nms") and vision.torchvision.models.resnet18
