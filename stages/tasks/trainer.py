"""The state of one training and its steps: loss, optimiser, masks, averages, checkpoint. Imports artifacts, errors, progress and tasks/ of npas. ``fit`` in train.py is the way in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artifacts import load_checkpoint, save_checkpoint
from stages.errors import NpasError
from stages.progress import Progress
from stages.tasks.alignment import Taps, alignment_loss
from stages.tasks.ema import Ema
from stages.tasks.hooks import FitHooks
from stages.tasks.placed import placed
from stages.tasks.schedules import SCHEDULES
from stages.tasks.task import Task


@dataclass(frozen=True)
class Recipe:
    """What makes two trainings the same; a checkpoint of another recipe is not continued."""

    total_steps: int
    epochs: float
    lr: float
    weight_decay: float
    label_smoothing: float
    seed: int
    limit: int
    distill: float
    temperature: float
    precision: str
    schedule: str
    ema: float
    align: float
    features: tuple[str, ...]


class Trainer:
    """The state of one training: module, optimiser, step and rows."""

    def __init__(self, module: nn.Module, task: Task, recipe: Recipe, teacher: nn.Module | None, masks: Mapping[str, Tensor], hooks: FitHooks):
        self.module, self.task, self.recipe, self.teacher, self.masks, self.hooks = module, task, recipe, teacher, masks, hooks
        self.step, self.ended = 0, False
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The module on the training device, channels last (twice as fast there), with an optimiser; back on the CPU and in eval mode afterwards."""
        with placed(self.module, self.task.device, train=True):
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.optimizer = torch.optim.AdamW(_groups(self.module, self.recipe.weight_decay), lr=self.recipe.lr, fused=True)
            apply_masks_(self.module, self.masks)
            self.ema = Ema(self.module, self.recipe.ema * self.recipe.total_steps) if self.recipe.ema else None
            try:
                if self.teacher is None:
                    yield
                else:
                    with placed(self.teacher, self.task.device, train=False):
                        yield
            finally:
                self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.module.eval()

    def epoch(self, steps: int, evaluate: bool) -> dict[str, Any]:
        """Train ``steps`` steps, evaluate, and append the row."""
        number, loss, first = len(self.rows) + 1, 0.0, self.step
        self.module.train()
        for batch in islice(self.task.batches("train", epoch=number - 1, limit=self.recipe.limit, seed=self.recipe.seed), steps):
            value = self.train_step(batch)
            loss += value
            self.ended = self.hooks.enough(self.step, self.recipe.total_steps, value)
            if self.ended:
                break
        if not math.isfinite(loss):
            raise NpasError(f"Training diverged: the loss of epoch {number} is not finite.", "Lower the learning rate (lr), or check the data.")
        self.hooks.after_epoch(number)
        row: dict[str, Any] = {"epoch": number, "loss": loss / (self.step - first)}
        if evaluate:
            with self.averaged():
                row["accuracy"] = self.task.evaluate(self.module)
        self.rows.append(row)
        return row

    def train_step(self, batch: Any) -> float:
        """One step of the optimiser; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = SCHEDULES[self.recipe.schedule](self.step, self.recipe.total_steps, self.recipe.lr)
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.hooks.before_step()
        self.optimizer.step()
        self.step += 1
        self.hooks.after_step(self.step, self.recipe.total_steps)
        apply_masks_(self.module, self.masks)
        if self.ema:
            self.ema.update(self.step)
        return float(loss.detach())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module as it would be if the training ended here."""
        with self.ema.applied() if self.ema else nullcontext():
            if self.ema:
                apply_masks_(self.module, self.masks)  # the average still holds what has been pruned within its window
            yield

    def finish(self) -> None:
        """Leave the module as ``averaged`` shows it."""
        if self.ema and self.step:
            self.ema.apply_()
            apply_masks_(self.module, self.masks)

    def loss(self, batch: Any) -> Tensor:
        """Task loss, distillation losses and the hooks' term of one batch."""
        recipe, inputs = self.recipe, self.task.inputs(batch)
        outputs, features = self.forward(self.module, inputs)
        loss = self.task.loss(outputs, batch, recipe.label_smoothing)
        if self.teacher is not None and (recipe.distill > 0 or recipe.align > 0):
            with torch.no_grad():
                taught, shown = self.forward(self.teacher, inputs)
            loss = (1 - recipe.distill) * loss + recipe.distill * self.task.distill_loss(outputs, taught, recipe.temperature)
            if features:
                loss = loss + recipe.align * alignment_loss(features, shown)
        extra = self.hooks.loss_term()
        return loss if extra is None else loss + extra

    def forward(self, module: nn.Module, inputs: Tensor) -> tuple[Any, list[Tensor]]:
        """The module's outputs and the features to align; matrix products in the task's precision, a single output tensor is float32 again."""
        low = self.task.precision != torch.float32
        with torch.autocast(self.task.device.type, self.task.precision, enabled=low), Taps(module, self.recipe.features if self.recipe.align else ()) as taps:
            outputs = module(inputs)
        return outputs.float() if low and isinstance(outputs, Tensor) else outputs, taps.features

    def save(self, path: Path) -> None:
        """Everything that the rest of the training depends on, atomically."""
        random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(self.task.device)} if self.task.device.type == "cuda" else {})
        state = {"recipe": vars(self.recipe), "step": self.step, "rows": self.rows, "module": self.module.state_dict()}
        save_checkpoint(path, state | {"optimizer": self.optimizer.state_dict(), "random": random, "hooks": self.hooks.state(), "ema": self.ema.state() if self.ema else {}})

    def load(self, path: Path, progress: Progress) -> None:
        """Continue from ``path``, unless it belongs to another recipe."""
        state = load_checkpoint(path)
        if state["recipe"] != vars(self.recipe):
            progress.say(f"{path} is of a training with other settings: starting anew")
            return
        self.step, self.rows = state["step"], state["rows"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hooks.load_state(state["hooks"])
        if self.ema:
            self.ema.load_state(state["ema"])
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.task.device)
        for row in self.rows:
            progress.advance(progress_line(row, math.ceil(self.recipe.epochs), self.task.metric_name) + "  (earlier run)")


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and batch-norm parameters (one dimension) don't."""
    learnt = [p for p in module.parameters() if p.requires_grad]
    return [{"params": [p for p in learnt if p.ndim > 1], "weight_decay": weight_decay}, {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0}]


@torch.no_grad()
def apply_masks_(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what the masks exclude to exactly +0, in place."""
    if masks:
        tensors = module.state_dict()
        for name, mask in masks.items():
            tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)


def progress_line(row: Mapping[str, Any], epochs: int, metric: str) -> str:
    """What the screen shows of an epoch."""
    accuracy = f"  {metric} {100 * row['accuracy']:.1f}" if "accuracy" in row else ""
    return f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}{accuracy}"
