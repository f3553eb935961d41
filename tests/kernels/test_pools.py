"""Max pooling in the output transform of Winograd convolutions: results equal PyTorch's with every tile size, and what isn't that stays a kernel of its own."""

from __future__ import annotations

import pytest
import torch
from kernel_kit import assert_equal, inputs, randomised
from torch import Tensor, nn

from stages.compiler import CompiledModel, compile_model
from stages.compiler.kernels import winograd
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.winograd_shape import Blocking, Shape
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


def network(activation: nn.Module, pool: nn.Module, channels: int = 24, filters: int = 27) -> nn.Module:
    """A convolution in the middle, so that it reads and writes memory of the compiler's."""
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, filters, 3, padding=1), activation, pool, nn.Conv2d(filters, 9, 1))


def compiled(module: nn.Module, *shape: int, threads: int = 1) -> CompiledModel:
    model = compile_model(randomised(module), inputs(*shape), threads=threads)
    assert_equal(model, module, inputs(*shape, seed=5), tolerance=2e-4)
    return model


def kernels(model: CompiledModel) -> list[str]:
    return [row["kernel"] for row in model.manifest["kernels"]]


@pytest.fixture
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 3x3 convolution by Winograd's method, with tiles of the size asked for."""

    def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
        step = placed.step
        if not winograd._takes(placed) or step.weight is None:
            return None
        filters, channels = step.weight.shape[:2]
        n, _, h, w = placed.output.shape
        shape = Shape((n, h, w), channels, filters, Blocking(*request.param, 5, target.lanes, 1, 0))
        return winograd.kernel(placed, shape, f"{scheme.label}: asked for")

    monkeypatch.setattr(winograd, "build", build)


@pytest.mark.parametrize("tiles", [(2, 2), (4, 2), (4, 4), (6, 4), (6, 6)], indirect=True, ids=str)
@pytest.mark.parametrize(("size", "threads"), [((2, 16, 16), 1), ((1, 14, 22), 2)])
@pytest.mark.usefixtures("tiles")
def test_even_tiles_are_pooled(size: tuple[int, int, int], threads: int) -> None:
    n, h, w = size
    model = compiled(network(nn.ReLU(), nn.MaxPool2d(2)), n, 3, h, w, threads=threads)
    assert kernels(model) == ["boundary", "gather", "winograd", "gather", "boundary"]
    assert "with the 2x2 max pooling behind it" in model.manifest["kernels"][2]["reason"]
    assert len(model.profile(1)) == 5


@pytest.mark.parametrize("tiles", [(5, 5), (4, 3)], indirect=True, ids=str)
@pytest.mark.usefixtures("tiles")
def test_odd_tiles_are_not() -> None:
    assert "pool" in kernels(compiled(network(nn.ReLU(), nn.MaxPool2d(2)), 1, 3, 20, 20))


@pytest.mark.parametrize("tiles", [(4, 4)], indirect=True, ids=str)
@pytest.mark.parametrize(
    ("activation", "pool", "size"),
    [
        (nn.SiLU(), nn.MaxPool2d(2), 16),  # falls and rises
        (nn.ReLU(), nn.AvgPool2d(2), 16),
        (nn.ReLU(), nn.MaxPool2d(2), 17),  # a row and a column that no square has
        (nn.ReLU(), nn.MaxPool2d(3, 2, 1), 16),
        (nn.ReLU(), nn.MaxPool2d(2, 1), 16),
    ],
    ids=str,
)
@pytest.mark.usefixtures("tiles")
def test_other_poolings_are_kernels_of_their_own(activation: nn.Module, pool: nn.Module, size: int) -> None:
    assert kernels(compiled(network(activation, pool), 1, 3, size, size)).count("pool") == 1


@pytest.mark.parametrize("tiles", [(4, 4)], indirect=True, ids=str)
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.8), nn.Hardsigmoid()], ids=str)
@pytest.mark.usefixtures("tiles")
def test_activations_that_never_fall_come_behind_the_pooling(activation: nn.Module) -> None:
    assert "pool" not in kernels(compiled(network(activation, nn.MaxPool2d(2)), 1, 3, 16, 16))


@pytest.mark.parametrize("tiles", [(4, 4)], indirect=True, ids=str)
@pytest.mark.usefixtures("tiles")
def test_a_result_that_others_read_too_is_stored_whole() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.b(self.a(x)))
            return nn.functional.max_pool2d(y, 2) + self.c(y)

    assert "pool" in kernels(compiled(Both(), 1, 3, 16, 16))
