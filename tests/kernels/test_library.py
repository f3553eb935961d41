"""The compiled file: cache, determinism, saving and loading, profile, and a process that knows neither TVM nor torch."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_kit import Fire, assert_equal, inputs, randomised
from torch import nn

from stages.artifacts import cache_dir
from stages.compiler import compile_model, load_model
from stages.errors import ArtifactError, UsageError
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme

SHAPE = (1, 3, 18, 22)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return randomised(Fire())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPAS_CACHE", str(tmp_path))
    return cache_dir("kernels")


def kernels(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.o")}


def test_one_kernel_serves_every_mask_of_about_the_same_density(own_cache: Path) -> None:
    dense = randomised(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)))
    x = torch.zeros(1, 32, 8, 8)
    graph = trace(dense, x)
    found = []
    for seed, rate in ((0, 2.0), (1, 2.0), (2, 2.3)):
        module = randomised(copy.deepcopy(dense), seed)
        scheme = uniform_scheme(graph, "block-punched", rate, 32)
        prune_(module, scheme)
        model = compile_model(module, x, scheme, graph=graph)
        assert_equal(model, module, inputs(1, 32, 8, 8))
        found.append(kernels(own_cache))
    assert found[0] == found[1] == found[2]


def test_a_warm_cache_compiles_nothing_and_gives_the_same_bytes(module: nn.Module, own_cache: Path) -> None:
    first = compile_model(module, torch.zeros(SHAPE))
    known = kernels(own_cache)
    second = compile_model(module, torch.zeros(SHAPE))
    assert known == kernels(own_cache) and known
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_cold_cache_gives_the_same_bytes_too(module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name in ("a", "somewhere/else"):
        monkeypatch.setenv("NPAS_CACHE", str(tmp_path / name))
        model = compile_model(module, torch.zeros(SHAPE))
        contents.append(model.path.read_bytes())
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]


def test_save_and_load(module: nn.Module, tmp_path: Path) -> None:
    model = compile_model(module, torch.zeros(SHAPE))
    loaded = load_model(model.save(tmp_path / "sub" / "model.so"))
    x = inputs(*SHAPE).numpy()
    assert np.array_equal(loaded(x)[0], model(x)[0])
    assert loaded.manifest == model.manifest and loaded.manifest["schema"] == "npas-manifest/1"
    assert loaded.manifest["max_abs_err"] <= 1e-3 * loaded.manifest["max_abs_output"]


def test_a_file_that_was_replaced_is_read_anew(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    first = load_model(compile_model(module, torch.zeros(SHAPE)).save(path))
    compile_model(nn.ReLU(), torch.zeros(1, 4)).save(path)
    assert load_model(path)(np.full((1, 4), -1, np.float32))[0].tolist() == [[0, 0, 0, 0]]
    assert_equal(first, module, inputs(*SHAPE))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load_model(tmp_path / "none.so")
    (tmp_path / "bad.so").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="not a model"):
        load_model(tmp_path / "bad.so")


def test_inputs_of_another_shape_are_refused(module: nn.Module) -> None:
    model = compile_model(module, torch.zeros(SHAPE))
    with pytest.raises(UsageError, match="18, 22"):
        model(np.zeros((1, 3, 18, 21), np.float32))
    with pytest.raises(UsageError):
        model()


def test_profile_has_one_time_for_each_kernel_of_the_manifest(module: nn.Module) -> None:
    model = compile_model(module, torch.zeros(SHAPE))
    rows = model.profile(runs=3)
    assert [(layer, kernel) for layer, kernel, _ in rows] == [(k["layer"], k["kernel"]) for k in model.manifest["kernels"]]
    assert all(ms >= 0 for _, _, ms in rows)


PROGRAM = """
import ctypes, sys
import numpy as np
library = ctypes.CDLL(sys.argv[1])
library.npas_workspace_bytes.restype = ctypes.c_size_t
room = np.zeros(library.npas_workspace_bytes() + 64, np.uint8)
room.fill(255)  # whatever lies in the workspace beforehand must not matter
workspace = room.ctypes.data + -room.ctypes.data % 64
x, y = np.load(sys.argv[2]), np.zeros((1, 10), np.float32)
ask = lambda threads, place: library.npas_run((ctypes.c_void_p * 1)(x.ctypes.data), (ctypes.c_void_p * 1)(y.ctypes.data), ctypes.c_void_p(place), threads)
assert ask(1, workspace) == 0 and ask(2, workspace) == 1 and ask(1, workspace + 4) == 2
assert not {"tvm", "torch"} & set(sys.modules)
np.save(sys.argv[3], y)
"""


def test_the_library_runs_by_its_c_interface_alone(module: nn.Module, tmp_path: Path) -> None:
    model = compile_model(module, torch.zeros(SHAPE))
    x = inputs(*SHAPE)
    np.save(tmp_path / "x.npy", x.numpy())
    subprocess.run([sys.executable, "-c", PROGRAM, model.save(tmp_path / "m.so"), tmp_path / "x.npy", tmp_path / "y.npy"], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model(x.numpy())[0])


def test_zig_links_where_no_cc_is_installed(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.compiler import toolchain

    monkeypatch.setattr(toolchain, "host", lambda: [sys.executable, "-m", "ziglang", "cc"])
    model = compile_model(module, torch.zeros(SHAPE), check=False)
    assert_equal(model, module, inputs(*SHAPE))
