"""The Task protocol: what is being compressed, as the rest of npas sees it. Imports torch only.

Classification is the first implementation (tasks/classification.py). Yours: ``task: package.module:Class``, a class that is called with the ``task`` section of the configuration
(stages.config.Task) and has these members; subclass ``Task`` to inherit the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Task(Protocol):
    """A network, its data, its loss and its metric. A batch is whatever ``batches`` yields; only the task looks inside.

    ``metric_name`` is the word for the metric on the screen ("top1"); the metric is a fraction 0..1 and higher is better. ``device`` is where training runs (never where latency is
    measured). ``threads`` are the CPU threads for training, 0 for torch's own choice. ``precision`` is the type of the matrix products in training steps (weights stay float32).
    """

    metric_name: str = "metric"
    device: torch.device = torch.device("cpu")
    threads: int = 0
    precision: torch.dtype = torch.float32

    def model(self) -> nn.Module:
        """A freshly initialised network on the CPU, the same at every call."""

    def example(self, batch: int = 1) -> Tensor:
        """An input of the network on the CPU, e.g. (batch, 3, 32, 32), the same at every call."""

    def size(self, split: str) -> int:
        """Samples in "train", "val" or "test"."""

    def batches(self, split: str, *, epoch: int = 0, limit: int = 0, seed: int = 0) -> Iterator[Any]:
        """One pass over a split, on ``device``; "train" is shuffled and augmented by (seed, epoch). ``limit`` > 0: only the first ``limit`` samples of the split."""

    def steps(self, limit: int = 0) -> int:
        """Batches in one pass over "train"."""

    def inputs(self, batch: Any) -> Tensor:
        """What the network is called with."""

    def loss(self, outputs: Any, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        """Scalar training loss."""

    def distill_loss(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Scalar loss that is 0 when the network does what the teacher does."""

    def evaluate(self, module: nn.Module, split: str = "val") -> float:
        """The metric of ``module`` on a split; the module's mode and place are unchanged afterwards."""


MEMBERS = ("model", "example", "size", "batches", "steps", "inputs", "loss", "distill_loss", "evaluate")
