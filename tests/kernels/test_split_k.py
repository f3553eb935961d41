"""Convolutions that threads divide by input channels: results equal PyTorch's, for any number of threads, with gates and residual sums; and where that isn't done."""

from __future__ import annotations

import functools

import pytest
import torch
from kernel_kit import assert_equal, inputs, randomised
from torch import Tensor, nn

from stages.compiler import CompiledModel, api, compile_model, split_k
from stages.compiler.arrange import arrange
from stages.compiler.ir import Program, Step
from stages.compiler.target import Target
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme


def likes_planes(step: Step, program: Program, on_planes: bool, target: Target) -> float:
    """As much on planes as can be."""
    return -float(on_planes)


class Residual(nn.Module):
    """An inverted residual with or without a gate; ``kernel`` of the depthwise layer."""

    def __init__(self, channels: int = 16, wide: int = 84, gated: bool = False, kernel: int = 3) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, channels, 1)
        self.depthwise = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide)
        self.squeeze, self.excite = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.expand(x))))
        if self.gated:
            y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return torch.relu(x + self.project(y))


def compiled(module: nn.Module, *shape: int, threads: int) -> CompiledModel:
    module, example = randomised(module), inputs(*shape)
    scheme = uniform_scheme(trace(module, example), "block-punched", 2.0, 8)
    prune_(module, scheme)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "arrange", functools.partial(arrange, cost=likes_planes))
        patch.setattr(split_k, "_LEAST", 1)
        model = compile_model(module, example, scheme, threads=threads)
    assert_equal(model, module, inputs(*shape, seed=5))
    return model


def sums(model: CompiledModel) -> list[str]:
    return [row["layer"] for row in model.manifest["kernels"] if row["layer"].endswith(":sum")]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize(("size", "kernel"), [((14, 14), 3), ((9, 13), 5)])
def test_projections_are_divided(gated: bool, threads: int, size: tuple[int, int], kernel: int) -> None:
    model, x = compiled(Residual(gated=gated, kernel=kernel), 1, 16, *size, threads=threads), inputs(1, 16, *size, seed=7).numpy()
    assert len(sums(model)) == 1
    alone = compiled(Residual(gated=gated, kernel=kernel), 1, 16, *size, threads=1)
    assert model.manifest["macs"] == alone.manifest["macs"] and not sums(alone)
    expected = model(x)[0]
    for number in range(1, threads + 1):  # fewer threads compute the same sums
        model.manifest["target"]["threads"] = number
        assert (model(x)[0] == expected).all()


@pytest.mark.parametrize(
    ("block", "images", "size"),
    [
        (Residual(), 2, 14),  # an image for each thread
        (Residual(20), 1, 14),  # a group of 8 filters would belong to two threads
        (Residual(16, 40), 1, 14),  # hardly narrower
        (Residual(), 1, 56),  # threads have rows of their own
    ],
)
def test_where_that_is_not_done(block: Residual, images: int, size: int) -> None:
    assert not sums(compiled(block, images, block.expand.in_channels, size, size, threads=2))
