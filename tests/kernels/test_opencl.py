"""The OpenCL backend: every kind of kernel, and whole networks, against PyTorch on an OpenCL device (PoCL, where there is no GPU)."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kernel_kit import Fire, assert_equal, calibrated, inputs, randomised
from random_networks import draw_network
from test_compile_stage import checkpoints
from test_fuzz import drawn_scheme
from torch import Tensor, nn

from stages import compile as stage
from stages.artifacts import read_json
from stages.compiler.opencl import OpenclModel, compile_opencl, runner
from stages.errors import DeviceNotFound, RunnerCrashed, UnsupportedOperator, UsageError
from stages.graph import trace
from stages.params import load
from stages.progress import Silent
from stages.schemes import Scheme, prune_, uniform_scheme
from stages.tasks import make_task

pytestmark = pytest.mark.opencl
STORAGES = ("float32", "float16")
ROUNDING = {"float32": 2e-5, "float16": 3e-3}  # of the largest output, in networks of a few layers


@pytest.fixture(scope="module", autouse=True)
def device() -> None:
    """Skips where there is no OpenCL device, and says why."""
    try:
        compile_opencl(nn.ReLU(), torch.zeros(1, 1), check=False).run([])
    except DeviceNotFound as why:
        pytest.skip(f"{why.message} {why.hint}")


def check(module: nn.Module, *shape: int, scheme: Scheme | None = None, storage: str = "float32", tolerance: float | None = None) -> OpenclModel:
    """Compile for one input of ``shape`` and compare."""
    x = inputs(*shape)
    model = compile_opencl(module, x, scheme, storage=storage, check=False)
    assert_equal(model, module, x, tolerance=tolerance or ROUNDING[storage])
    return model


class Everything(nn.Module):
    """One network with every kind of kernel, each activation and each way to combine two tensors: kernels are built once for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.paths = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(12, 12, 1), nn.SiLU(), nn.Conv2d(12, 10, 3, padding=2, dilation=2), nn.GELU()),
                nn.Sequential(nn.Conv2d(12, 12, 5, padding=2, groups=12), nn.BatchNorm2d(12), nn.Hardswish(), nn.Conv2d(12, 10, 1), nn.Mish()),
                nn.Sequential(nn.Conv2d(12, 10, (1, 3), padding=(0, 1), groups=2), nn.ELU(0.7), nn.MaxPool2d(3, 1, 1), nn.Softplus(2.0)),
                nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(12, 10, 1), nn.Tanh(), nn.ChannelShuffle(5), nn.LeakyReLU(0.1)),
            ]
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(40, 40, 1), nn.Sigmoid())
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40 * 4, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> (N, 7), (N, 40, 2, 2)."""
        x = torch.relu(self.stem(x))
        a, b, c, d = (path(x) for path in self.paths)
        y = torch.cat([a - b * c, b + d, c / torch.sigmoid(d), nn.functional.pad(d[..., 1:, 1:], (1, 0, 1, 0), value=0.5)], 1)
        y = nn.functional.adaptive_avg_pool2d(y * self.gate(y), 2)
        z = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.softmax(self.head(torch.flatten(z, 1)), 1), nn.functional.interpolate(z, scale_factor=2.0)


@pytest.mark.parametrize("storage, batch", [("float32", 2), pytest.param("float16", 1, marks=pytest.mark.full)])
def test_every_kind_of_kernel(storage: str, batch: int) -> None:
    model = check(randomised(Everything()), batch, 3, 17, 22, storage=storage)
    kinds = {kernel["kernel"].rpartition("_")[0] for kernel in model.manifest["kernels"]}
    assert kinds == {"pointwise", "matvec", "conv", "depthwise", "global_pool", "pool", "copy", "normalise"}


@settings(max_examples=3, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_convolutions_of_any_shape(data: st.DataObject) -> None:
    """Also pruned: filters and blocks of positions that are zero."""

    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, kernel = draw(1, 2), (draw(1, 4), draw(1, 4))
    conv = nn.Conv2d(groups * draw(1, 6), groups * draw(1, 14), kernel, (draw(1, 3), draw(1, 3)), (draw(0, 3), draw(0, 3)), (draw(1, 2), draw(1, 2)), groups)
    conv = randomised(conv)
    keep = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(draw(0, 99))) < data.draw(st.sampled_from((0.0, 0.3, 0.8, 1.1)))
    conv.weight.data *= keep
    check(conv, draw(1, 2), conv.in_channels, draw(7, 12), draw(7, 12), storage=data.draw(st.sampled_from(STORAGES)))


def pruned(module: nn.Module, shape: tuple[int, ...], pruning: str = "block-punched", rate: float = 3.0, block: int = 8) -> tuple[nn.Module, Scheme]:
    scheme = uniform_scheme(trace(module, torch.zeros(shape)), pruning, rate, block)
    module = copy.deepcopy(module)
    prune_(module, scheme)
    return module, scheme


def zoo(name: str) -> Callable[..., nn.Module]:
    from stages.tasks.vision import torchvision

    return getattr(torchvision.models, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("pruning, block", [("block-punched", 8), *(pytest.param(*more, marks=pytest.mark.full) for more in (("block-punched", 4), ("pattern", 8), ("filter", 8)))])
def test_pruned_blocks(pruning: str, block: int) -> None:
    shape = (1, 3, 24, 24)
    dense = randomised(Fire())
    module, scheme = pruned(dense, shape, pruning, 2.25, block)
    model, whole = check(module, *shape, scheme=scheme), compile_opencl(dense, torch.zeros(shape), check=False)
    assert model.manifest["macs"] < 0.7 * whole.manifest["macs"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_whole_networks_dense_and_pruned(name: str) -> None:
    shape = (1, 3, 64, 64)
    module = calibrated(zoo(name)(), *shape)
    dense = check(module, *shape)
    thin, scheme = pruned(module, shape)
    model = check(thin, *shape, scheme=scheme)
    assert model.manifest["macs"] < 0.5 * dense.manifest["macs"]
    check(module, *shape, storage="float16", tolerance=0.05)


@pytest.mark.full
@settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_graphs_and_schemes(data: st.DataObject) -> None:
    """As in test_fuzz.py."""
    torch.manual_seed(0)
    module, shape = draw_network(data.draw, 3)
    module = randomised(module)
    graph = trace(module, torch.zeros(shape))
    scheme = drawn_scheme(data, graph)
    prune_(module, scheme)
    model = compile_opencl(module, torch.zeros(shape), scheme, graph=graph)
    assert model.manifest["max_abs_err"] <= 3e-5 * max(model.manifest["max_abs_output"], 1e-6)


def test_the_compilers_own_check_and_the_saved_folder(tmp_path: Path) -> None:
    module, x = randomised(Fire()), inputs(1, 3, 24, 24)
    model = compile_opencl(module, x)
    assert 0 < model.manifest["max_abs_err"] < 2e-5 * model.manifest["max_abs_output"] and model.manifest["checked_on"]["platform"]
    folder = model.save(tmp_path / "network")
    assert read_json(folder / "manifest.json") == model.manifest and (folder / "runner").stat().st_mode & 0o111
    run = runner.run(folder, [o["shape"] for o in model.manifest["outputs"]], [x.numpy()], runs=3, profile=2)
    assert len(run.samples_ms) == 3 and [layer for layer, _, _ in run.launches] == [k["layer"] for k in model.manifest["kernels"]]
    assert (run.outputs[0] == model(x.numpy())[0]).all()


def test_without_a_device_the_network_is_compiled_but_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))  # where the system's libOpenCL would find its devices
    model = compile_opencl(nn.ReLU(), torch.zeros(1, 2))
    assert model.manifest["max_abs_err"] is None and "no OpenCL device" in model.manifest["notes"][0]
    with pytest.raises(DeviceNotFound, match="no OpenCL device"):
        model(torch.zeros(1, 2).numpy())


@pytest.mark.full
def test_the_runner_links_for_arm(tmp_path: Path) -> None:
    program = runner.build("linux-arm64")
    assert program is not None and program.read_bytes()[:20].endswith(b"\xb7\0")  # ELF, AArch64


def test_equal_networks_give_equal_bytes() -> None:
    module, x = randomised(Fire()), inputs(1, 3, 24, 24)
    one, two = (compile_opencl(module, x, check=False).network for _ in range(2))
    assert (one.source, one.blob, json.dumps(one.plan)) == (two.source, two.blob, json.dumps(two.plan))


def test_memory_is_used_again() -> None:
    model = compile_opencl(nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(12))).eval(), torch.zeros(1, 8, 16, 16), check=False)
    assert len(model.network.plan["buffers"]) == 4  # two of the caller's, two in turns


def test_what_cannot_be_compiled_or_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="storage"):
        compile_opencl(nn.ReLU(), torch.zeros(1, 2), storage="int4")
    with pytest.raises(UnsupportedOperator, match="cumsum"):
        compile_opencl(_Cumsum(), torch.zeros(1, 4))
    model = compile_opencl(nn.ReLU(), torch.zeros(1, 2), check=False)
    with pytest.raises(UsageError, match="shapes"):
        model(torch.zeros(1, 3).numpy())
    folder = model.save(tmp_path)
    (folder / "kernels.cl").write_text("__kernel void broken(")
    with pytest.raises(RunnerCrashed, match="can't be built"):
        runner.run(folder, [(1, 2)])


class _Cumsum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


@pytest.mark.full
def test_the_compile_stage_writes_a_folder_for_each_network(project: Path) -> None:
    config = load(None, ["task.model=npas_tiny", "compile.backend=opencl", "compile.precision=float16"]).config
    task = make_task(config.task)
    checkpoints(randomised(task.model()))
    said: list[str] = []
    metrics = stage.run(config, _Listener(said))
    folder = Path("compile/host-opencl")
    assert metrics == {k: v for k, v in read_json(folder / "metrics.json").items() if k != "schema"} and metrics["macs"] < metrics["macs_dense"]
    assert metrics["opencl"]["gpu"] or any("(a CPU: not a phone's GPU)" in line for line in said)
    (out,) = runner.run(folder / "dense", [(1, 10)], [inputs(*task.example().shape).numpy()]).outputs
    assert out.shape == (1, 10) and os.access(folder / "runner", os.X_OK) and not Path("compile/host").exists()


def test_the_cpu_has_no_half_precision(project: Path) -> None:
    checkpoints(randomised(make_task(load(None, ["task.model=npas_tiny"]).config.task).model()))
    with pytest.raises(UsageError, match="float32, not in float16"):
        stage.run(load(None, ["task.model=npas_tiny", "compile.precision=float16"]).config, Silent())


class _Listener(Silent):
    """Keeps what a stage says."""

    def __init__(self, said: list[str]):
        self.said = said

    def say(self, line: str) -> None:
        self.said.append(line)
