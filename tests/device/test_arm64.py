"""Networks compiled for 64-bit ARM: static executables that run in qemu and compute what PyTorch computes, and how many instructions they take. Emulated: nothing here is a phone's speed."""

from __future__ import annotations

import copy
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from kernel_kit import Fire, assert_equal, calibrated, inputs, randomised
from random_networks import draw_network
from test_fuzz import TOLERANCE, drawn_scheme
from torch import Tensor, nn

from stages.compiler import compile_model, count, cross, load_model, toolchain
from stages.compiler.cross import CrossModel
from stages.devices import emulator, runner
from stages.errors import UnsupportedOperator, UsageError
from stages.graph import trace
from stages.schemes import Scheme, prune_, uniform_scheme

pytestmark = [
    pytest.mark.full,
    pytest.mark.arm64,
    pytest.mark.skipif(emulator.find() is None, reason="no qemu-aarch64-static here (apt-get install qemu-user-static): ARM code was not run"),
]
counted = pytest.mark.skipif(not count.available(), reason="the package unicorn isn't installed: instructions were not counted")
SHAPE = (1, 3, 18, 22)


@pytest.fixture(autouse=True, scope="module")
def _kept_zig_cache(zig_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(zig_cache))
        toolchain.prepare(toolchain.STATIC, print)
        yield


class Emulated:
    """A CrossModel that may be called: in qemu."""

    def __init__(self, model: CrossModel, threads: int = 1):
        self.model, self.threads = model, threads

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        found = self.model.emulated(*arrays, threads=self.threads)
        assert found is not None
        return found


def compiled(module: nn.Module, example: Tensor, scheme: Scheme | None = None, threads: int = 1, target: str = "android-arm64") -> CrossModel:
    model = compile_model(module, example, scheme, target, threads)
    assert isinstance(model, CrossModel)
    return model


def pruned(module: nn.Module, example: Tensor, kind: str, rate: float, block: int) -> tuple[nn.Module, Scheme]:
    module = copy.deepcopy(module)
    scheme = uniform_scheme(trace(module, example), kind, rate, block)
    prune_(module, scheme)
    return module, scheme


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["none", "block-punched", "pattern"])
def test_a_small_network_equals_pytorch(kind: str, threads: int) -> None:
    module, x = randomised(Fire()), torch.zeros(SHAPE)
    module, scheme = (module, None) if kind == "none" else pruned(module, x, kind, 3.0, 8)
    model = compiled(module, x, scheme, threads)
    assert model.manifest["max_abs_err"] < 2e-5 * model.manifest["max_abs_output"]
    assert_equal(Emulated(model, threads), module, inputs(*SHAPE))  # type: ignore[arg-type]


@counted
def test_mobilenet_dense_and_pruned() -> None:
    from stages.tasks.vision import torchvision

    shape = (1, 3, 64, 64)
    module, x = calibrated(torchvision.models.mobilenet_v2(weights=None), *shape), torch.zeros(shape)
    found = []
    for rate in (1.0, 3.0, 8.0):
        network, scheme = (module, None) if rate == 1 else pruned(module, x, "block-punched", rate, 8)
        model = compiled(network, x, scheme)
        assert model.manifest["max_abs_err"] < 1e-4 * model.manifest["max_abs_output"]
        found.append((count.instructions(model), model.manifest["macs"]))
    (dense, dense_macs), (third, _), (eighth, _) = found
    assert third < 0.55 * dense and eighth < 0.35 * dense
    assert dense < 0.5 * dense_macs  # at four multiply-adds an instruction, 0.25 would be nothing but multiply-adds


@counted
def test_a_count_is_always_the_same_and_has_parts() -> None:
    model = compiled(randomised(Fire()), torch.zeros(SHAPE))
    numbers = {count.instructions(model, [inputs(*SHAPE, seed=seed).numpy()]) for seed in (1, 2)}
    assert len(numbers) == 1
    total, parts = numbers.pop(), count.profile(model)
    assert [(layer, kernel) for layer, kernel, _ in parts] == [(k["layer"], k["kernel"]) for k in model.manifest["kernels"]]
    assert total > sum(n for _, _, n in parts) > 0.99 * total > 0.99 * model.manifest["macs"] / 4


@pytest.mark.parametrize("mcpu", ["generic", "cortex-a53", "cortex-a55", "cortex-a76"])
def test_code_ordered_for_newer_processors_runs_on_the_oldest(mcpu: str) -> None:
    """qemu plays a Cortex-A53 (Armv8.0), which stops at any newer instruction."""
    model = compiled(randomised(Fire()), torch.zeros(SHAPE), target=f"android-arm64:{mcpu}")
    assert model.manifest["target"]["mcpu"] == mcpu
    assert model.manifest["max_abs_err"] is not None


@counted
@pytest.mark.parametrize(("block", "most"), [(4, 0.45), (8, 0.46), (16, 0.42)])
def test_sparse_kernels_hold_their_sums_in_registers(block: int, most: float) -> None:
    """Four multiply-adds an instruction leave 0.25; loads, addresses and the loop take the rest. A tile that spills its accumulators, or a poor choice of layout, takes 0.5 and more."""
    x = torch.zeros(1, 3, 28, 28)
    module = nn.Sequential(nn.Conv2d(3, 128, 1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()).eval()
    network, scheme = pruned(module, x, "block-punched", 5.0, block)
    model = compiled(network, x, scheme)
    heavy = max(model.manifest["kernels"], key=lambda k: k["macs"])
    (instructions,) = [n for layer, kernel, n in count.profile(model) if (layer, kernel) == (heavy["layer"], heavy["kernel"])]
    assert instructions < most * heavy["macs"]


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_random_graphs_and_schemes(data: st.DataObject) -> None:
    """Every kind of kernel, as in tests/kernels/test_fuzz.py."""
    torch.manual_seed(0)
    module, shape = draw_network(data.draw, 3)
    module, x = randomised(module), torch.zeros(shape)
    graph = trace(module, x)
    scheme = drawn_scheme(data, graph)
    prune_(module, scheme)
    threads = data.draw(st.sampled_from((1, 2)))
    try:
        model = compile_model(module, x, scheme, "android-arm64", threads, graph=graph, tolerance=TOLERANCE)
    except UnsupportedOperator:  # of the front end, which knows no target
        reject()
    assert isinstance(model, CrossModel)
    if threads > 1:
        example = inputs(*shape)
        with torch.inference_mode():
            expected = module.double()(example.double())
        for found, wanted in zip(Emulated(model, threads)(example.numpy()), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=TOLERANCE * max(float(wanted.abs().max()), 1e-6))


def test_one_executable_runs_several_networks(tmp_path: Path) -> None:
    x = torch.zeros(SHAPE)
    module = randomised(Fire())
    smaller, scheme = pruned(module, x, "block-punched", 3.0, 8)
    networks = {"dense": compiled(module, x), "model": compiled(smaller, x, scheme)}
    program = cross.write_runner(networks, tmp_path / "runner")
    assert os.access(program, os.X_OK)
    for name, network in (("dense", module), ("model", smaller)):
        example = inputs(*SHAPE)
        (found,) = emulator.outputs(emulator.find() or [], program, name, networks[name].manifest, [example.numpy()])
        with torch.no_grad():
            np.testing.assert_allclose(found, network(example).numpy(), atol=1e-4)


def test_saved_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    model = compiled(randomised(Fire()), torch.zeros(SHAPE))
    program = model.save(tmp_path / "network")
    assert program.read_bytes()[18:20] == b"\xb7\0"  # ELF e_machine of AArch64
    with pytest.raises(UsageError, match="another processor"):
        load_model(program)
    assert model.save(tmp_path / "face.a").read_bytes().startswith(b"!<arch>\n")
    names = subprocess.run([sys.executable, "-m", "ziglang", "ar", "t", tmp_path / "face.a"], capture_output=True, text=True, check=True).stdout.split()
    assert "model.o" in names and len(names) > 3
    with pytest.raises(UsageError, match="NDK"):
        model.save(tmp_path / "network.so")
    assert not (tmp_path / "network.so").exists()


GLIBC = Path("/usr/aarch64-linux-gnu/lib/libc.so.6")


@pytest.mark.skipif(
    not GLIBC.exists() or platform.machine() == "aarch64", reason="no C library for dynamic ARM programs here (apt-get install libc6-arm64-cross)"
)
def test_a_linux_library_loads_and_runs_on_two_threads(tmp_path: Path) -> None:
    module = randomised(Fire())
    model = compiled(module, torch.zeros(SHAPE), threads=2, target="linux-arm64")
    toolchain.prepare(toolchain.GLIBC, print)
    library, program = model.save(tmp_path / "model.so"), tmp_path / "runner"
    toolchain.run([*toolchain.zig(toolchain.GLIBC), "-O2", str(runner.SOURCE), "-ldl", "-o", str(program)], tmp_path)
    command = [*(emulator.find() or []), "-L", str(GLIBC.parents[1])]
    example = inputs(*SHAPE)
    (found,) = emulator.outputs(command, program, str(library), model.manifest, [example.numpy()], threads=2)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(example).numpy(), atol=1e-4)


def test_it_can_not_be_called_here() -> None:
    model = compile_model(randomised(Fire()), torch.zeros(SHAPE), target="linux-arm64", check=False)
    with pytest.raises(UsageError, match="linux-arm64"):
        model(np.zeros(SHAPE, np.float32))
    with pytest.raises(UsageError, match="linux-arm64"):
        model.profile()


def test_the_ndk_s_compiler_makes_the_android_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the NDK, which no registry has: it drops the NDK's own options and has zig link. What a real NDK makes of them is not tested here."""
    clang = tmp_path / "ndk/toolchains/llvm/prebuilt/linux-x86_64/bin/clang"
    clang.parent.mkdir(parents=True)
    clang.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/asked\nshift 2\nexec {sys.executable} -m ziglang cc -target {toolchain.STATIC} "$@"\n')
    clang.chmod(0o755)
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path / "ndk"))
    model = compiled(randomised(Fire()), torch.zeros(SHAPE))
    assert model.manifest["notes"] == []
    library = model.save(tmp_path / "model.so")
    assert library.read_bytes()[18:20] == b"\xb7\0"
    assert (tmp_path / "asked").read_text() == "--target=aarch64-linux-android24\n"


def test_an_ndk_without_a_compiler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="ANDROID_NDK_HOME"):
        compile_model(randomised(Fire()), torch.zeros(SHAPE), target="android-arm64", check=False)


@pytest.mark.skipif(platform.machine() == "aarch64", reason="runs its own code without qemu")
def test_without_qemu_it_is_said_that_nothing_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name in emulator.NAMES else which(name, *rest))
    model = compile_model(randomised(Fire()), torch.zeros(SHAPE), target="linux-arm64")
    assert model.manifest["max_abs_err"] is None
    (note,) = model.manifest["notes"]
    assert "not run" in note and "apt-get install qemu-user-static" in note


def test_the_stage_makes_one_executable_and_its_record(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_compile_stage import checkpoints

    from stages import compile as stage
    from stages.artifacts import read_json, sha256
    from stages.params import load
    from stages.progress import Silent
    from stages.tasks import make_task

    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    config = load(None, ["task.model=npas_tiny", "compile.target=android-arm64"]).config
    checkpoints(randomised(make_task(config.task).model()))
    metrics = stage.run(config, Silent())
    manifest = read_json("compile/android-arm64/manifest.json")
    assert manifest["runner_sha256"] == sha256("compile/android-arm64/runner")
    assert manifest["target"]["name"] == "android-arm64" and "NDK" in manifest["notes"][0]
    assert sorted(path.name for path in Path("compile/android-arm64").iterdir()) == ["manifest.json", "metrics.json", "runner"]
    assert read_json("compile/android-arm64/metrics.json")["max_abs_err"] == metrics["max_abs_err"] > 0
    if count.available():
        assert manifest["insns_arm64"] == metrics["insns_arm64"] < metrics["insns_arm64_dense"]
