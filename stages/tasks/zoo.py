"""The embedded networks: small EfficientNet-style classifiers with every ingredient that npas treats. Imports torch only.

They are the dense starting points: swish activations, squeeze-and-excitation (SE) gates with sigmoid, depthwise 3x3 and 5x5 layers, residual sums, and plain 3x3 convolutions
(Fused-MBConv, EfficientNetV2, Tan and Le 2021) that pattern and block-punched pruning can work on. Channel counts are multiples of 16, the widest block of filters that vector units like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm and, if ``act``, swish."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.SiLU(inplace=True)] if act else []))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        gates: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return x * gates


class Block(nn.Module):
    """One residual block: expand, convolve in space, optional SE, project; the sum only when shapes agree."""

    def __init__(self, *layers: nn.Module, residual: bool):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


@dataclass(frozen=True)
class Stage:
    """``repeat`` blocks; the first one has the stride. ``kind``: "plain" (one 3x3), "fused" (3x3 expands, 1x1 projects) or "mb" (1x1 expands, depthwise, SE, 1x1 projects)."""

    kind: str
    channels: int
    expand: int = 1
    kernel: int = 3
    stride: int = 1
    repeat: int = 1


def make_block(stage: Stage, inputs: int, stride: int) -> Block:
    """One block of ``stage`` on ``inputs`` channels."""
    wide, outputs, kernel = inputs * stage.expand, stage.channels, stage.kernel
    project = conv_bn(wide, outputs, 1, act=False)
    layers: Sequence[nn.Module]
    if stage.kind == "plain":
        layers = [conv_bn(inputs, outputs, kernel, stride)]
    elif stage.kind == "fused":
        layers = [conv_bn(inputs, wide, kernel, stride), project]
    else:
        layers = [conv_bn(inputs, wide, 1), conv_bn(wide, wide, kernel, stride, groups=wide), SqueezeExcite(wide, -(-inputs // 64) * 16), project]
    return Block(*layers, residual=stride == 1 and inputs == outputs)


class Net(nn.Module):
    """Stem, stages of blocks, a 1x1 head, global pooling and a linear classifier."""

    def __init__(self, stem: int, stem_stride: int, stages: Sequence[Stage], head: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        blocks: list[Block] = []
        channels = stem
        for stage in stages:
            for i in range(stage.repeat):
                blocks.append(make_block(stage, channels, stage.stride if i == 0 else 1))
                channels = stage.channels
        self.stem = conv_bn(3, stem, 3, stem_stride)
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn(channels, head, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        features = torch.flatten(self.pool(self.head(self.blocks(self.stem(x)))), 1)
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 by fan-out, as EfficientNet does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def npas_net(num_classes: int = 10) -> nn.Module:
    """The default: about 30 million multiply-accumulates and 0.5 million weights at 3x32x32."""
    stages = (
        Stage("fused", 32, expand=4, stride=2),
        Stage("fused", 32, expand=3),
        Stage("mb", 64, expand=4, kernel=3, stride=2),
        Stage("mb", 64, expand=4, kernel=5),
        Stage("plain", 96),
        Stage("plain", 96),
        Stage("mb", 128, expand=4, kernel=5, stride=2),
        Stage("mb", 128, expand=4, kernel=3),
    )
    return Net(16, 1, stages, head=256, num_classes=num_classes)


def npas_tiny(num_classes: int = 10) -> nn.Module:
    """The same ingredients in under 0.5 million multiply-accumulates at 3x32x32, for tests."""
    stages = (Stage("fused", 16, expand=1, stride=2), Stage("mb", 16, expand=2, kernel=5), Stage("mb", 32, expand=2, stride=2), Stage("plain", 32, stride=2))
    return Net(16, 2, stages, head=64, num_classes=num_classes)


ZOO: dict[str, Callable[..., nn.Module]] = {"npas_net": npas_net, "npas_tiny": npas_tiny}
