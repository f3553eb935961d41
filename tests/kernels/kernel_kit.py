"""Small networks for the compiler's tests, and how a compiled one is compared with PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stages.compiler import CompiledModel, compile_model
from stages.schemes import Scheme


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics and gains, biases that matter: a wrongly wired graph can't pass."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(m.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(m.bias, 0, 0.2, generator=generator)
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight, generator=generator)
            if m.bias is not None:
                nn.init.normal_(m.bias, 0, 0.2, generator=generator)
    return module.eval()


def calibrated(module: nn.Module, *shape: int, seed: int = 0) -> nn.Module:
    """Random weights and gains, batch norms with the statistics of standard normal images of ``shape``: deep networks whose activations neither vanish nor explode."""
    torch.manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.normal_(m.bias, 0.0, 0.1)
            m.momentum = None  # plain average over the calibration batch
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    with torch.no_grad():
        module.train()(torch.randn(8, *shape[1:]))
    return module.eval()


def inputs(*shape: int, seed: int = 1) -> Tensor:
    """A standard normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(model: CompiledModel, module: nn.Module, *examples: Tensor, tolerance: float = 2e-5) -> None:
    """Every output equals PyTorch's to ``tolerance`` of the largest."""
    with torch.no_grad():
        expected = module(*examples)
    expected = (expected,) if isinstance(expected, Tensor) else expected
    found = model(*(x.numpy() for x in examples))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerance * max(float(b.abs().max()), 1e-6))


def check(module: nn.Module, *shapes: tuple[int, ...], scheme: Scheme | None = None, tolerance: float = 2e-5) -> CompiledModel:
    """Compile for inputs of ``shapes`` and compare on other inputs than the compiler's own check."""
    examples = tuple(inputs(*shape, seed=i + 1) for i, shape in enumerate(shapes))
    model = compile_model(module, examples, scheme)
    assert_equal(model, module, *examples, tolerance=tolerance)
    return model


class Fire(nn.Module):
    """Everything of a mobile block at once: stem, expand, depthwise, SE gate, residual sum, concat, pooling, classifier."""

    def __init__(self, channels: int = 24, squeezed: int = 6, kernel: int = 3, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.BatchNorm2d(2 * channels), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, kernel, 1, kernel // 2, groups=2 * channels, bias=False), nn.BatchNorm2d(2 * channels), nn.SiLU()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, 2 * channels, 1), nn.Hardsigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.conv = nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.classifier = nn.Linear(32 + channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        x = x + self.project(y * self.gate(y))
        both = torch.cat([self.conv(x), x], 1)
        return self.classifier(both.mean((2, 3)))
