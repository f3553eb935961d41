"""Training: one function for every stage that trains. Imports artifacts, errors, progress and tasks/ of npas.

AdamW with a one-cycle cosine schedule. With a checkpoint, a run that was killed continues at its last whole epoch and ends bit-exactly where an undisturbed one would
(same thread count, on the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artifacts import load_checkpoint, save_checkpoint
from stages.errors import NpasError
from stages.progress import Progress, Silent, bar
from stages.tasks.placed import placed
from stages.tasks.task import Task

SILENT = Silent()
WARM_UP = 0.2  # share of the steps in which the learning rate rises
START, END = 0.04, 0.002  # learning rate at the first and the last step, as a share of the peak


class FitHooks:
    """What a pruning algorithm adds to training; every method does nothing by default."""

    def loss_term(self) -> Tensor | None:
        """Added to the loss of every step (ADMM's penalty), on the device of the weights."""

    def after_step(self, step: int, total_steps: int) -> None:
        """After the optimiser's step number ``step`` (from 1) and before the masks are applied: a hook may change the tensors of ``masks``."""

    def after_epoch(self, epoch: int) -> None:
        """After epoch number ``epoch`` (from 1), before its evaluation."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for the checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""


@dataclass(frozen=True)
class _Recipe:
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


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of step ``step`` (from 0) of ``total``: a cosine up over the first fifth, then a cosine down (Smith and Topin 2019)."""
    rise = max(1.0, WARM_UP * total)
    if step < rise:
        low, place = START, 1 - step / rise
    else:
        low, place = END, (step - rise) / max(1.0, total - rise)
    return peak * (low + (1 - low) * (1 + math.cos(math.pi * place)) / 2)


def fit(module: nn.Module, task: Task, *, epochs: float, lr: float, weight_decay: float = 0.0, label_smoothing: float = 0.0, seed: int = 0, limit: int = 0,
        teacher: nn.Module | None = None, distill: float = 0.0, temperature: float = 3.0, masks: Mapping[str, Tensor] | None = None, hooks: FitHooks | None = None,
        checkpoint: Path | None = None, progress: Progress = SILENT, description: str = "training", threads: int | None = None, evaluate: bool = True) -> list[dict[str, Any]]:  # fmt: skip
    """Train ``module`` in place and return one row per epoch: ``{"epoch": 1, "loss": 0.41, "accuracy": 0.96}`` (accuracy on val, only with ``evaluate``). It ends in eval mode.

    ``epochs`` may be a fraction: 1.5 is one epoch and half of another. The loss is ``(1 - distill) * task loss + distill * distillation loss`` from ``teacher``'s outputs, plus the hooks' term.
    ``masks`` maps names of the state_dict to boolean tensors; what they exclude is set to exactly 0 at the start and after every step. ``limit`` > 0 trains on that many samples.
    ``checkpoint`` is written after every epoch and continued from when it exists; the caller deletes it. Raises NpasError when the loss stops being finite.
    """
    steps = task.steps(limit)
    total = max(1, round(epochs * steps)) if epochs > 0 else 0
    recipe = _Recipe(total, float(epochs), lr, weight_decay, label_smoothing, seed, limit, distill if teacher is not None else 0.0, temperature, str(task.precision))
    trainer = _Trainer(module, task, recipe, teacher, {} if masks is None else masks, hooks or FitHooks())
    with (
        cpu_threads(task.threads if threads is None else threads),
        _own_randomness(task.device, seed),
        trainer.prepared(),
        bar(progress, description, math.ceil(total / steps)),
    ):
        if checkpoint is not None and checkpoint.exists():
            trainer.load(checkpoint, progress)
        while trainer.step < total:
            row = trainer.epoch(min(steps, total - trainer.step), evaluate)
            if checkpoint is not None:
                trainer.save(checkpoint)
            progress.advance(_line(row, math.ceil(total / steps), task.metric_name))
    return trainer.rows


class _Trainer:
    """The state of one training: module, optimiser, step and rows."""

    def __init__(self, module: nn.Module, task: Task, recipe: _Recipe, teacher: nn.Module | None, masks: Mapping[str, Tensor], hooks: FitHooks):
        self.module, self.task, self.recipe, self.teacher, self.masks, self.hooks = module, task, recipe, teacher, masks, hooks
        self.step = 0
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The module on the training device, channels last (twice as fast there), with an optimiser; back on the CPU and in eval mode afterwards."""
        with placed(self.module, self.task.device, train=True):
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.optimizer = torch.optim.AdamW(_groups(self.module, self.recipe.weight_decay), lr=self.recipe.lr, fused=True)
            apply_masks_(self.module, self.masks)
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
        number, loss = len(self.rows) + 1, 0.0
        self.module.train()
        for batch in islice(self.task.batches("train", epoch=number - 1, limit=self.recipe.limit, seed=self.recipe.seed), steps):
            loss += self.train_step(batch)
        if not math.isfinite(loss):
            raise NpasError(f"Training diverged: the loss of epoch {number} is not finite.", "Lower the learning rate (lr), or check the data.")
        self.hooks.after_epoch(number)
        row: dict[str, Any] = {"epoch": number, "loss": loss / steps}
        if evaluate:
            row["accuracy"] = self.task.evaluate(self.module)
        self.rows.append(row)
        return row

    def train_step(self, batch: Any) -> float:
        """One step of the optimiser; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = one_cycle(self.step, self.recipe.total_steps, self.recipe.lr)
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.hooks.after_step(self.step, self.recipe.total_steps)
        apply_masks_(self.module, self.masks)
        return float(loss.detach())

    def loss(self, batch: Any) -> Tensor:
        """Task loss, distillation loss and the hooks' term of one batch."""
        recipe, inputs = self.recipe, self.task.inputs(batch)
        outputs = self.forward(self.module, inputs)
        loss = self.task.loss(outputs, batch, recipe.label_smoothing)
        if self.teacher is not None and recipe.distill > 0:
            with torch.no_grad():
                taught = self.forward(self.teacher, inputs)
            loss = (1 - recipe.distill) * loss + recipe.distill * self.task.distill_loss(outputs, taught, recipe.temperature)
        extra = self.hooks.loss_term()
        return loss if extra is None else loss + extra

    def forward(self, module: nn.Module, inputs: Tensor) -> Any:
        """The module's outputs, matrix products in the task's precision; a single output tensor is float32 again."""
        low = self.task.precision != torch.float32
        with torch.autocast(self.task.device.type, self.task.precision, enabled=low):
            outputs = module(inputs)
        return outputs.float() if low and isinstance(outputs, Tensor) else outputs

    def save(self, path: Path) -> None:
        """Everything that the rest of the training depends on, atomically."""
        random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(self.task.device)} if self.task.device.type == "cuda" else {})
        state = {"recipe": vars(self.recipe), "step": self.step, "rows": self.rows, "module": self.module.state_dict()}
        save_checkpoint(path, state | {"optimizer": self.optimizer.state_dict(), "random": random, "hooks": self.hooks.state()})

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
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.task.device)
        for row in self.rows:
            progress.advance(_line(row, math.ceil(self.recipe.epochs), self.task.metric_name) + "  (earlier run)")


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


@torch.no_grad()
def recalibrate_bn(module: nn.Module, task: Task, limit: int = 0) -> None:
    """Estimate the running mean and variance of every batch norm anew from (the first ``limit`` of) the training images; weights stay. The module ends in eval mode."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    with placed(module, task.device, train=False):
        for norm in norms:
            norm.train()
        for batch in task.batches("train", limit=limit):
            module(task.inputs(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """torch computes with ``count`` CPU threads (0: as before)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout and the like draw from ``seed``; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _line(row: Mapping[str, Any], epochs: int, metric: str) -> str:
    accuracy = f"  {metric} {100 * row['accuracy']:.1f}" if "accuracy" in row else ""
    return f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}{accuracy}"
