"""Squeeze-and-excitation gates in the weights behind them, pixel-major: results equal PyTorch's for any number of threads; and where a gate remains a pass of its own. On planes: test_planar.py."""

from __future__ import annotations

import pytest
import torch
from kernel_kit import assert_equal, inputs, randomised
from torch import Tensor, nn

from stages.compiler import api
from stages.compiler.target import resolve
from stages.graph import trace
from stages.schemes import Scheme, prune_, uniform_scheme


class Gated(nn.Module):
    """A gate before a 1x1 convolution with a residual sum; ``kernel`` of a convolution in front, whose frame the gated pixels don't have."""

    def __init__(self, channels: int, wide: int, filters: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.expand, self.squeeze, self.excite = nn.Conv2d(channels, wide, kernel, padding=kernel // 2), nn.Conv2d(wide, 6, 1), nn.Conv2d(6, wide, 1)
        self.project = nn.Conv2d(wide, filters, 1, stride)
        self.residual = channels == filters and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, filters, H / stride, W / stride)."""
        y = torch.relu(self.expand(x))
        y = self.project(y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))))
        return x + y if self.residual else y


def compiled(module: nn.Module, shape: tuple[int, ...], rate: float = 2.0, block: int = 8, threads: int = 1) -> api.Build:
    """The pruned network without planes, compared with PyTorch."""
    module, example = randomised(module), inputs(*shape)
    scheme = uniform_scheme(trace(module, example), "block-punched", rate, block) if rate > 1 else Scheme()
    prune_(module, scheme)
    build = api.Build(*api.prepare(module, example, scheme, None), resolve("host"), threads, planes=())
    assert_equal(build.link(), module, inputs(*shape, seed=5))
    return build


def passes(build: api.Build) -> int:
    """Products that are a pass over the activation."""
    return [k.rule for k in build.kernels].count("elementwise")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rate", "block"), [(1.0, 8), (2.0, 8), (3.0, 4)])
@pytest.mark.parametrize(("filters", "kernel"), [(13, 1), (40, 3)])
def test_gates_go_into_the_weights_behind_them(filters: int, kernel: int, rate: float, block: int, threads: int) -> None:
    build = compiled(Gated(13, 50, filters, kernel), (1, 13, 11, 13), rate, block, threads)
    assert passes(build) == 0
    assert [k.spec.gate is not None for k in build.kernels if k.step.name == "project"] == [True]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Gated(13, 50, 13), (2, 13, 9, 11)),  # each image has a gate of its own
        (Gated(13, 50, 40), (1, 13, 3, 5)),  # more weights than pixels
        (Gated(13, 50, 16, stride=2), (1, 13, 9, 11)),
        (Gated(13, 50, 16), (1, 13, 1, 1)),  # a linear layer
    ],
)
def test_gates_that_stay_a_pass(module: Gated, shape: tuple[int, ...]) -> None:
    build = compiled(module, shape)
    assert passes(build) >= 1 or shape[2:] == (1, 1)
    assert not any(k.step.attrs.get("gate") for k in build.kernels)
