"""Image classification: the first Task. Imports config, errors and tasks/ only of npas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.config import Task as TaskConfig
from stages.errors import UsageError
from stages.tasks.augment import AUGMENT
from stages.tasks.data import load_data
from stages.tasks.imports import describe
from stages.tasks.models import build_model
from stages.tasks.placed import placed
from stages.tasks.task import Task


class Batch(NamedTuple):
    """Normalised images (N, 3, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor


class Classification(Task):
    """Top-1 accuracy of a network that maps images to one logit per class."""

    metric_name = "top1"

    def __init__(self, config: TaskConfig):
        self.config, self.threads = config, config.threads
        self.device = pick_device(config.train_device)
        self.precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.precision]
        self.data = load_data(config.data, config.image_size, config.seed)
        self.mean, self.std = self.data.statistics()
        self._checked = False

    def model(self) -> nn.Module:
        """The network of ``task.model``, initialised from ``task.seed``; UsageError unless it maps the images to one logit per class."""
        module = build_model(self.config.model, len(self.data.classes), self.config.seed)
        if not self._checked:
            self._check(module)
            self._checked = True
        return module

    def example(self, batch: int = 1) -> Tensor:
        """Seeded noise with the mean and deviation of normalised images, (batch, 3, image_size, image_size)."""
        size = self.config.image_size
        return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(self.config.seed))

    def size(self, split: str) -> int:
        """Images in a split; ``task.train_limit`` counts."""
        count = len(self.data.splits[split].labels)
        return min(count, self.config.train_limit or count) if split == "train" else count

    def steps(self, limit: int = 0) -> int:
        """Batches in one pass over the training images."""
        return math.ceil(min(self.size("train"), limit or self.size("train")) / self.config.batch_size)

    def batches(self, split: str, *, epoch: int = 0, limit: int = 0, seed: int = 0) -> Iterator[Batch]:
        """Batches of nearly equal size, so that none is too small for batch norm."""
        images = self.data.splits[split]
        count = min(self.size(split), limit or self.size(split))
        generator = np.random.default_rng([self.config.seed, seed, epoch])
        order = generator.permutation(count) if split == "train" else np.arange(count)
        for part in np.array_split(order, math.ceil(count / self.config.batch_size)):
            pixels = images.take(part.tolist())
            if split == "train":
                pixels = AUGMENT[self.config.augment](pixels, generator, self.data.flip)
            pixels = (pixels - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
            yield Batch(pixels.to(self.device, memory_format=torch.channels_last), images.labels[part].to(self.device))

    def inputs(self, batch: Batch) -> Tensor:
        """The images."""
        return batch.images

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, averaged over the batch."""
        return F.cross_entropy(outputs, batch.labels, label_smoothing=label_smoothing)

    def distill_loss(self, outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
        """T^2 * KL(teacher / T || outputs / T), averaged over the batch (Hinton et al. 2015, section 2)."""
        log_student, log_teacher = F.log_softmax(outputs / temperature, 1), F.log_softmax(teacher_outputs / temperature, 1)
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2

    @torch.no_grad()
    def evaluate(self, module: nn.Module, split: str = "val") -> float:
        """Share of the images whose largest logit is the right one."""
        with placed(module, self.device, train=False):
            right = sum(int((module(b.images).argmax(1) == b.labels).sum()) for b in self.batches(split))
        return right / self.size(split)

    def _check(self, module: nn.Module) -> None:
        size, classes = self.config.image_size, len(self.data.classes)
        try:
            with torch.no_grad():
                outputs = module.eval()(self.example())
        except Exception as error:  # a user's network may raise anything
            hint = "Networks for ImageNet want larger images: set task.image_size, e.g. to 224." if size < 224 else "Mend the network, or set task.image_size."
            raise UsageError(f"The network '{self.config.model}' doesn't run on 3x{size}x{size} images: {describe(error)}.", hint) from error
        if not isinstance(outputs, Tensor) or outputs.shape != (1, classes):
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UsageError(
                f"The network '{self.config.model}' returns {got}; classification of {classes} classes needs (batch, {classes}).",
                "Build it with num_classes set, or name another task.",
            )
        module.train()


def pick_device(name: str) -> torch.device:
    """The device for training: "auto" takes CUDA when there is one; UsageError when "cuda" is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("task.train_device is cuda, but torch sees no CUDA device.", "Set it to auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
