"""Code for other processors than this one: AVX2 code runs on any AVX-512 machine, NEON code is at least generated."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_kit import Fire, assert_equal, inputs, randomised
from torch import nn

from stages.compiler import api, compile_model, target, toolchain
from stages.compiler.arrange import arrange
from stages.compiler.fuse import fuse
from stages.compiler.kernels import tir
from stages.compiler.lower import lower
from stages.compiler.share import share
from stages.compiler.shrink import shrink
from stages.compiler.tuning import database
from stages.errors import UsageError
from stages.graph import trace
from stages.schemes import Scheme, prune_, uniform_scheme

SHAPE = (1, 3, 18, 22)
AVX2 = target.avx2("haswell")
NEON = target.resolve("android-arm64")


@pytest.mark.skipif(target.resolve("host").isa == "neon", reason="runs x86 code")
@pytest.mark.parametrize("block", [4, 8, 16])
def test_avx2(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(api, "resolve", lambda name: AVX2)
    module = randomised(Fire())
    scheme = uniform_scheme(trace(module, torch.zeros(SHAPE)), "block-punched", 3.0, block)
    prune_(module, scheme)
    model = compile_model(module, torch.zeros(SHAPE), scheme)
    assert model.manifest["target"]["isa"] == "avx2"
    assert_equal(model, module, inputs(*SHAPE))


@pytest.mark.skipif(target.resolve("host").isa == "neon", reason="runs x86 code")
@pytest.mark.parametrize(("channels", "size"), [(300, 9), (37, 28)])
@pytest.mark.parametrize(("block", "stride"), [(8, 1), (16, 2)])
def test_lines_are_claimed(channels: int, size: int, block: int, stride: int) -> None:
    """Results of any size; the last tile has none behind it, the last row none below."""
    machine = dataclasses.replace(AVX2, reach=dataclasses.replace(AVX2.reach, second=0))
    module = randomised(nn.Sequential(nn.Conv2d(channels, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, stride, 1, groups=24), nn.Hardswish()))
    example = torch.zeros(1, channels, size, size)
    scheme = uniform_scheme(trace(module, example), "block-punched", 3.0, block)
    prune_(module, scheme)
    build = api.Build(*api.prepare(module, example, scheme, None), machine, 1, planes=())
    assert {k.rule: k.spec.claiming for k in build.kernels if k.rule in ("gather", "depthwise")} == {"gather": True, "depthwise": True}
    assert_equal(build.link(), module, inputs(*example.shape))


@pytest.mark.skipif(target.resolve("host").isa == "neon", reason="runs x86 code")
@pytest.mark.parametrize(("rate", "at_once"), [(2.0, True), (1.0, False)])
@pytest.mark.parametrize(("kernel", "tile"), [(3, (2, 7)), (1, (1, 14))])
def test_weights_of_the_next_group_are_asked_for(monkeypatch: pytest.MonkeyPatch, kernel: int, tile: tuple[int, int], rate: float, at_once: bool) -> None:
    """A few lines in a tile's beginning, many among its positions; the last group has none behind it, and the last tile is smaller. Rows that are merged to one have tiles of as many pixels."""
    choice = {"rule": "gather", "lanes": 8, "vectors": 1, "rows": 2, "cols": 7, "pixels_outer": False}
    monkeypatch.setattr(database, "find", lambda signature, target: (choice, database.SHIPPED))
    module = randomised(nn.Sequential(nn.Conv2d(160, 960, 1), nn.Hardswish(), nn.Conv2d(960, 8, kernel, padding=kernel // 2)))
    example = torch.zeros(1, 160, 7, 7)
    scheme = uniform_scheme(trace(module, example), "block-punched", rate, 8) if rate > 1 else Scheme()
    prune_(module, scheme)
    build = api.Build(*api.prepare(module, example, scheme, None), AVX2, 1, planes=())
    spec = next(k.spec for k in build.kernels if k.rule == "gather")
    assert (spec.rows, spec.cols, spec.streamed, spec.at_once) == (*tile, "group", at_once)
    assert_equal(build.link(), module, inputs(*example.shape))


@pytest.mark.skipif(target.resolve("host").isa == "neon", reason="runs x86 code")
@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("uses", [1, 2])
def test_multiply_add(lanes: int, uses: int, tmp_path: Path) -> None:
    def body(o: object) -> None:
        a, b, c = (tir.tirx.convert(0) + first for first in (0, lanes, 2 * lanes))
        x = [o.x[tir.at(first, lanes)] for first in (a, b, c)]  # type: ignore[attr-defined]
        tir.store(o.y, 0, tir.multiply_add(x[2], x[0], x[1], lanes, AVX2, uses), lanes)  # type: ignore[attr-defined]

    tir.write_object(tir.function("f", body, multiplies=AVX2), AVX2.tvm(), tmp_path / "f.o")
    toolchain.run([*toolchain.host(), "-shared", "-o", "f.so", "f.o"], tmp_path)
    x, y = np.random.default_rng(0).standard_normal(3 * lanes, np.float32), np.zeros(lanes, np.float32)
    pointers = [ctypes.c_void_p(operand) for operand in (x.ctypes.data, *[None] * 7, y.ctypes.data, None)]
    ctypes.CDLL(str(tmp_path / "f.so")).f(*pointers, ctypes.c_int32(0), ctypes.c_int32(1))
    np.testing.assert_allclose(y, x[:lanes] * x[lanes : 2 * lanes] + x[2 * lanes :], rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [None, 4])
def test_neon_code_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int | None) -> None:
    """Object code only: tests/device/test_arm64.py runs it."""
    monkeypatch.setenv("NPAS_CACHE", str(tmp_path))
    module = randomised(Fire())
    graph = trace(module, torch.zeros(SHAPE))
    scheme = uniform_scheme(graph, "block-punched", 3.0, block) if block else Scheme()
    prune_(module, scheme)
    tensors = {name: t.numpy() for name, t in module.state_dict().items()}
    build = api.Build(graph, tensors, scheme, NEON, 1, "android-arm64")
    assert len(build.objects) > 5
    machine = {np.frombuffer(path.read_bytes()[18:20], "<u2")[0] for path in build.objects.values()}
    assert machine == {183}  # ELF e_machine of AArch64


def test_fine_blocks_run_on_planes() -> None:
    """Groups of 4 filters on NEON: one vector of channels asks for a load per multiply-add, pixels don't."""
    module = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)).eval()
    graph = trace(module, torch.zeros(1, 3, 28, 28))
    scheme = uniform_scheme(graph, "block-punched", 4.0, 4)
    prune_(module, scheme)
    program = share(shrink(fuse(lower(graph, {name: t.detach().numpy() for name, t in module.state_dict().items()}, scheme))), NEON)
    assert arrange(program, NEON).planes


def cpuinfo(flags: str, vendor: str = "GenuineIntel", family: str = "6") -> dict[str, str]:
    return {"flags": flags, "vendor_id": vendor, "cpu family": family}


def test_x86_processors_are_told_apart() -> None:
    wide = "avx2 fma avx512f avx512bw avx512vl avx512dq"
    assert target._x86(cpuinfo(wide)).mcpu == "skylake-avx512"
    xeon = target._x86(cpuinfo(f"{wide} amx_tile"))
    assert (xeon.mcpu, xeon.reach.far < target.Reach().far) == ("sapphirerapids", True)  # with AMX: a server, whose memory is far away
    zen4 = target._x86(cpuinfo(wide, "AuthenticAMD", "25"))
    assert (zen4.mcpu, zen4.lanes, zen4.fused_narrow) == ("znver4", 16, True)
    assert not target._x86(cpuinfo(wide, "AuthenticAMD", "26")).fused_narrow
    assert target._x86(cpuinfo("avx2 fma")) == AVX2
    with pytest.raises(UsageError, match="AVX"):
        target._x86(cpuinfo("sse4_2"))


@pytest.mark.parametrize("name", ["toaster", "host:cortex-a55", "android-arm64:toaster"])
def test_an_unknown_target_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="toaster|host:cortex-a55"):
        target.resolve(name)


def test_arm_processors_share_an_instruction_set_and_differ_in_order() -> None:
    assert target.resolve("linux-arm64") == target.resolve("android-arm64") == target.resolve("android-arm64:generic")
    assert "-dotprod" in target.resolve("android-arm64:cortex-a55").tvm()["mattr"]
