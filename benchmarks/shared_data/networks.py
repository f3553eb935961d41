"""The pretrained networks of $NPAS_DATA/weights, with their weights. For ``task.model: benchmarks.shared_data.networks:resnet20`` and the like; the folder's models.py defines them."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

from torch import nn

from benchmarks.shared_data.place import place


def resnet20() -> nn.Module:
    """For CIFAR-10: 269,722 parameters, 91.73 % on the test images."""
    return _cifar_resnet(20, "12fca82f")


def resnet56() -> nn.Module:
    """For CIFAR-10: 853,018 parameters, 93.39 % on the test images."""
    return _cifar_resnet(56, "4bfd9763")


def efficientnet_lite0() -> nn.Module:
    """For ImageNet (``imagenet:lite``): 4.65 million parameters."""
    return _loaded(_models().EfficientNetLite(), "efficientnet_lite0_fp16.pth")


def mobilenet_v2() -> nn.Module:
    """For ImageNet images turned by 180 degrees (``imagenet:turned``): 3.50 million parameters."""
    from stages.tasks.vision import torchvision

    return _loaded(torchvision.models.mobilenet_v2(), "mobilenet_v2_rot180_fp16.pth")


def _cifar_resnet(depth: int, digest: str) -> nn.Module:
    return _loaded(_models().CifarResNet(depth), f"cifar10_resnet{depth}-{digest}.th")


def _loaded(module: nn.Module, name: str) -> nn.Module:
    module.load_state_dict(_models().load(str(place("weights", name))))
    return module


@cache
def _models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("npas_shared_models", place("weights", "models.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
