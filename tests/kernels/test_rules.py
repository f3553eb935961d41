"""Each kernel rule against PyTorch, over drawn shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import check, randomised
from torch import Tensor, nn

from stages.compiler.kernels.pool import runs
from stages.compiler.kernels.units import channel_blocks, split

few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@few
@given(data=st.data())
def test_convolution_of_any_shape(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (2, 2)]))
    dilation = data.draw(st.sampled_from([1, 1, 2]))
    conv = nn.Conv2d(
        data.draw(st.integers(1, 19)),
        data.draw(st.integers(1, 70)),
        kernel,
        data.draw(st.sampled_from([1, 2, 3])),
        data.draw(st.integers(0, 2)),
        dilation,
        bias=data.draw(st.booleans()),
    )
    height, width = data.draw(st.integers(9, 20)), data.draw(st.integers(9, 40))
    check(randomised(conv), (data.draw(st.integers(1, 3)), conv.in_channels, height, width))


@few
@given(data=st.data())
def test_depthwise_convolution_of_any_shape(data: st.DataObject) -> None:
    channels, kernel = data.draw(st.integers(2, 41)), data.draw(st.sampled_from([2, 3, 5, 7]))
    padding = data.draw(st.integers(0, kernel // 2))
    conv = nn.Conv2d(channels, channels, kernel, data.draw(st.sampled_from([1, 2])), padding, data.draw(st.sampled_from([1, 1, 2])), groups=channels)
    check(randomised(conv), (data.draw(st.integers(1, 2)), channels, data.draw(st.integers(14, 22)), data.draw(st.integers(14, 30))))


@pytest.mark.parametrize(("inner", "outer", "groups"), [(8, 16, 2), (12, 12, 3), (6, 12, 6), (64, 64, 4)])
def test_grouped_convolution(inner: int, outer: int, groups: int) -> None:
    check(randomised(nn.Conv2d(inner, outer, 3, padding=1, groups=groups)), (2, inner, 7, 9))


def test_grouped_convolution_computes_only_its_own_groups() -> None:
    model = check(randomised(nn.Conv2d(64, 64, 3, padding=1, groups=4)), (1, 64, 8, 8))
    assert model.manifest["macs"] == model.manifest["macs_dense"] == 64 * 16 * 9 * 64


@few
@given(batch=st.integers(1, 5), inner=st.integers(1, 70), outer=st.integers(1, 150))
def test_linear(batch: int, inner: int, outer: int) -> None:
    check(randomised(nn.Linear(inner, outer)), (batch, inner))


def test_linear_behind_a_flattened_image_permutes_its_columns() -> None:
    check(randomised(nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 5 * 4, 7))), (2, 3, 7, 6))


POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, 2)),
    nn.AdaptiveAvgPool2d((None, 1)),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 10, 13), (1, 40, 7, 8)], ids=str)
def test_pooling(pool: nn.Module, shape: tuple[int, ...]) -> None:
    check(pool, shape)


def test_runs_of_equal_windows() -> None:
    assert runs([(0, 2, 2), (1, 4, 3), (3, 6, 3), (5, 8, 3), (7, 9, 2)]) == ((0, 1, 0, 0, 2, 2), (1, 3, 1, 2, 3, 3), (4, 1, 7, 0, 2, 2))
    assert runs([(0, 7, 7)]) == ((0, 1, 0, 0, 7, 7),)


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 2.0), nn.LeakyReLU(0.1), nn.SiLU(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.Tanh(), nn.Mish(), nn.ELU(0.7),
    nn.Softplus(), nn.Softplus(2.0, 3.0),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_alone_and_behind_a_convolution(activation: nn.Module) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 24, 1), activation

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.act(20 * x), self.act(self.conv(x))

    model = check(randomised(Both()), (1, 4, 5, 7), tolerance=1e-6)
    assert sum(k["kernel"] == "gather" for k in model.manifest["kernels"]) == 1
    assert len(model.manifest["kernels"]) <= 6  # two inputs and outputs, convolution, scaled activation: nothing apart


class Binary(nn.Module):
    def __init__(self, op: str, broadcast: bool):
        super().__init__()
        self.op, self.broadcast = op, broadcast

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if self.broadcast:
            y = y.mean((2, 3), keepdim=True) + 3
        return getattr(torch, self.op)(x, y + 3), getattr(torch, self.op)(y + 3, x * x + 1), getattr(torch, self.op)(x, 1.7)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("broadcast", [False, True], ids=["same shape", "one number a channel"])
def test_binary_operations(op: str, broadcast: bool) -> None:
    check(Binary(op, broadcast), (2, 11, 4, 5), (2, 11, 4, 5))


class Parts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = x.chunk(2, 1)
        joined = torch.cat([b, x, a], 1)
        padded = nn.functional.pad(x, (1, 2, 0, 3), value=0.5)
        return joined, padded, x[:, 1:7:2], torch.cat([x[:, :, 2:], x], 2)


def test_concat_slice_and_pad() -> None:
    check(Parts(), (2, 10, 6, 7))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_channel_shuffle() -> None:
    check(Shuffle(), (2, 12, 4, 5))


def test_batch_norm_that_finds_no_convolution() -> None:
    check(randomised(nn.Sequential(nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8))), (1, 9, 6, 6))


def test_tiles_and_blocks_cover_everything_once() -> None:
    for total in range(1, 40):
        covered = [first + tile * size + k for size, first, tiles in split(total, 7) for tile in range(tiles) for k in range(size)]
        assert covered == list(range(total))
        channels = [
            first + b * lanes * v + k for first, count, lanes, v in channel_blocks(total, (16, 8, 4), 4) for b in range(count) for k in range(lanes * v)
        ]
        assert channels == list(range(total))
