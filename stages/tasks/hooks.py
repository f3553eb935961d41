"""What may take part in a training. Imports torch only."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class FitHooks:
    """What a pruning algorithm adds to training; every method does nothing by default."""

    def loss_term(self) -> Tensor | None:
        """Added to the loss of every step (ADMM's penalty), on the device of the weights."""

    def before_step(self) -> None:
        """After the gradients of a batch and before the optimiser's step: gradients may be read, and changed."""

    def after_step(self, step: int, total_steps: int) -> None:
        """After the optimiser's step number ``step`` (from 1) and before the masks are applied: a hook may change the tensors of ``masks``."""

    def enough(self, step: int, total_steps: int, loss: float) -> bool:
        """After step number ``step`` with its ``loss``: should the training end here, before its time? The module stays as it is then."""
        return False

    def after_epoch(self, epoch: int) -> None:
        """After epoch number ``epoch`` (from 1), before its evaluation."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for the checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
