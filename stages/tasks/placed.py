"""A module on a device, in a mode, for a while. Imports torch only."""

from __future__ import annotations

import torch
from torch import nn


class placed:  # noqa: N801 - a context manager
    """``with placed(module, device, train=False):`` the module is on ``device`` in that mode; afterwards every submodule is where and how it was."""

    def __init__(self, module: nn.Module, device: torch.device, train: bool):
        self.module, self.device, self.train = module, device, train

    def __enter__(self) -> nn.Module:
        self.modes = [(m, m.training) for m in self.module.modules()]
        self.home = next((p.device for p in self.module.parameters()), self.device)
        self.module.to(self.device).train(self.train)
        return self.module

    def __exit__(self, *_: object) -> None:
        self.module.to(self.home)
        for module, mode in self.modes:
            module.training = mode
