"""A convolution and the depthwise one behind it in one kernel: equal to PyTorch at any size, stride, band height and split among threads; and where it is used."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_kit import assert_equal, inputs, randomised
from test_planar import kernels, likes_planes
from torch import nn

from stages.compiler import CompiledModel, api, compile_model
from stages.compiler.arrange import arrange
from stages.compiler.bands import fuse_bands
from stages.compiler.kernels import planar_band
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme


def compiled(module: nn.Module, *shape: int, rate: float = 2.0, threads: int = 1, least: int = 0, scratch: int = planar_band.SCRATCH) -> CompiledModel:
    """The pruned network on planes wherever possible, with bands where the expanded activation takes more than ``least`` bytes; compared on other inputs than the compiler's own check."""
    module, example = randomised(module), inputs(*shape)
    scheme = uniform_scheme(trace(module, example), "block-punched", rate, 8)
    prune_(module, scheme)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "arrange", functools.partial(arrange, cost=likes_planes))
        patch.setattr(api, "fuse_bands", functools.partial(fuse_bands, least=least))
        patch.setattr(planar_band, "SCRATCH", scratch)
        model = compile_model(module, example, scheme, threads=threads)
    assert_equal(model, module, inputs(*shape, seed=5))
    return model


class Inverted(nn.Module):
    """An inverted residual, with what may read the expanded activation besides."""

    def __init__(self, channels: int, hidden: int, kernel: int, stride: int, activation: type, watched: bool = False):
        super().__init__()
        self.expand, self.first = nn.Conv2d(channels, hidden, 1), activation()
        self.deep, self.second = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden), activation()
        self.project, self.stride, self.watched = nn.Conv2d(hidden, channels, 1), stride, watched

    def forward(self, x):
        wide = self.first(self.expand(x))
        out = self.project(self.second(self.deep(wide)))
        if self.watched:
            out = out + self.project(wide)
        return x + out if self.stride == 1 else out


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 20),
    hidden=st.integers(1, 40),
    height=st.integers(3, 40),
    width=st.integers(8, 40),
    kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    activation=st.sampled_from([nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Identity]),
    threads=st.integers(1, 3),
    scratch=st.sampled_from([1, 4096, planar_band.SCRATCH]),
)
def test_equal_to_pytorch(batch, channels, hidden, height, width, kernel, stride, activation, threads, scratch) -> None:
    model = compiled(Inverted(channels, hidden, kernel, stride, activation), batch, channels, height, width, threads=threads, scratch=scratch)
    found = kernels(model)
    assert "planar_band" in found or (width + stride - 1) // stride < 4 or "planar_depthwise" not in found


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    hidden=st.integers(2, 40),
    height=st.integers(6, 60),
    width=st.integers(16, 60),
    first=st.sampled_from([(1, 2), (3, 1), (3, 2), (5, 1), (7, 2)]),
    kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    threads=st.integers(1, 3),
    scratch=st.sampled_from([1, 4096, planar_band.SCRATCH]),
)
def test_first_layers(batch, hidden, height, width, first, kernel, stride, threads, scratch) -> None:
    window, step = first
    stem = nn.Conv2d(3, hidden, window, step, window // 2)
    deep = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden)
    model = compiled(nn.Sequential(stem, nn.ReLU6(), deep, nn.ReLU6(), nn.Conv2d(hidden, 8, 1)), batch, 3, height, width, threads=threads, scratch=scratch)
    found = kernels(model)
    assert "planar_band" in found or "planar_depthwise" not in found
    assert ("space_to_depth" in found) == (step == 2)


def test_no_band_reads_before_the_workspace() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 8, 7, padding=3), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    assert "planar_band" in kernels(compiled(wide, 1, 3, 8, 300))
    assert "planar_band" not in kernels(compiled(wide, 1, 3, 8, 3000)), "two rows of 3,003 floats are more than the room before the first Value"


def test_blocks_in_a_row_share_scratch_and_save_workspace() -> None:
    blocks = nn.Sequential(Inverted(16, 96, 3, 1, nn.ReLU6), Inverted(16, 96, 5, 1, nn.ReLU6), Inverted(16, 96, 3, 2, nn.ReLU6))
    with_bands, without = (compiled(blocks, 1, 16, 56, 56, least=least) for least in (0, 1 << 40))
    assert kernels(with_bands).count("planar_band") == 3 and kernels(without).count("planar_band") == 0
    assert with_bands.manifest["workspace_bytes"] < 0.7 * without.manifest["workspace_bytes"]
    assert with_bands.manifest["macs"] == without.manifest["macs"]


def test_where_it_is_not_used() -> None:
    assert "planar_band" not in kernels(compiled(Inverted(16, 96, 3, 1, nn.ReLU, watched=True), 1, 16, 28, 28)), "another layer reads the expanded activation"
    assert "planar_band" not in kernels(compiled(Inverted(16, 96, 3, 1, nn.SiLU), 1, 16, 28, 28)), "a long activation wants a loop of its own"
    assert "planar_band" not in kernels(compiled(Inverted(16, 24, 3, 1, nn.ReLU), 1, 16, 28, 28, least=512 * 1024)), "the expanded activation fits the cache"
