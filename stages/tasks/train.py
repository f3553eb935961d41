"""Training: one function for every stage that trains. Imports progress and tasks/ of npas.

AdamW with a one-cycle cosine schedule, or another of SCHEDULES. With a checkpoint, a run that was killed continues at its last whole epoch and ends bit-exactly where an undisturbed one would
(same thread count, on the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.progress import Progress, Silent, bar
from stages.tasks.hooks import FitHooks
from stages.tasks.task import Task
from stages.tasks.trainer import Recipe, Trainer, progress_line

SILENT = Silent()


def fit(module: nn.Module, task: Task, *, epochs: float, lr: float, weight_decay: float = 0.0, label_smoothing: float = 0.0, seed: int = 0, limit: int = 0,
        teacher: nn.Module | None = None, distill: float = 0.0, temperature: float = 3.0, masks: Mapping[str, Tensor] | None = None, hooks: FitHooks | None = None,
        checkpoint: Path | None = None, progress: Progress = SILENT, description: str = "training", threads: int | None = None, evaluate: bool = True,
        schedule: str = "one-cycle", ema: float = 0.0, align: float = 0.0, features: Sequence[str] = ()) -> list[dict[str, Any]]:  # fmt: skip
    """Train ``module`` in place and return one row per epoch: ``{"epoch": 1, "loss": 0.41, "accuracy": 0.96}`` (accuracy on val, only with ``evaluate``). It ends in eval mode.

    ``epochs`` may be a fraction: 1.5 is one epoch and half of another. The loss is ``(1 - distill) * task loss + distill * distillation loss`` from ``teacher``'s outputs, plus
    ``align`` times the misalignment of the outputs of the submodules ``features`` with the teacher's (tasks/alignment.py), plus the hooks' term. ``ema`` > 0: what is evaluated, and what
    the module ends with, is the average of its weights over about that share of all steps (tasks/ema.py), under the masks.
    ``masks`` maps names of the state_dict to boolean tensors; what they exclude is set to exactly 0 at the start and after every step. ``limit`` > 0 trains on that many samples.
    ``checkpoint`` is written after every epoch and continued from when it exists; the caller deletes it. Raises NpasError when the loss stops being finite.
    """
    steps = task.steps(limit)
    total = max(1, round(epochs * steps)) if epochs > 0 else 0
    recipe = Recipe(total, float(epochs), lr, weight_decay, label_smoothing, seed, limit, distill if teacher is not None else 0.0, temperature, str(task.precision),
                     schedule, ema, align if teacher is not None else 0.0, tuple(features))  # fmt: skip
    trainer = Trainer(module, task, recipe, teacher, {} if masks is None else masks, hooks or FitHooks())
    with (
        cpu_threads(task.threads if threads is None else threads),
        _own_randomness(task.device, seed),
        trainer.prepared(),
        bar(progress, description, math.ceil(total / steps)),
    ):
        if checkpoint is not None and checkpoint.exists():
            trainer.load(checkpoint, progress)
        while trainer.step < total and not trainer.ended:
            row = trainer.epoch(min(steps, total - trainer.step), evaluate)
            if checkpoint is not None:
                trainer.save(checkpoint)
            progress.advance(progress_line(row, math.ceil(total / steps), task.metric_name))
        trainer.finish()
    return trainer.rows


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
