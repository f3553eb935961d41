"""The average of a network's weights over the last steps of its training (Polyak and Juditsky 1992). Imports torch only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of all floating-point tensors of ``module``, batch norms' running statistics included.

    ``window`` is its length in steps: the weight of the past is 1 - 1 / window, and until a window is full the average is the plain mean, so that the start has no special weight.
    """

    def __init__(self, module: nn.Module, window: float):
        self.module, self.window = module, max(1.0, window)
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if tensor.is_floating_point()}

    def live(self) -> dict[str, Tensor]:
        """The module's own tensors, by the same names."""
        state = self.module.state_dict()
        return {name: state[name] for name in self.tensors}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number ``step`` (from 1)."""
        torch._foreach_lerp_(list(self.tensors.values()), list(self.live().values()), 1 / min(step, self.window))

    @torch.no_grad()
    def apply_(self) -> None:
        """Write the average into the module."""
        for name, tensor in self.live().items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average meanwhile."""
        kept = {name: tensor.clone() for name, tensor in self.live().items()}
        self.apply_()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.live().items():
                    tensor.copy_(kept[name])

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return self.tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
