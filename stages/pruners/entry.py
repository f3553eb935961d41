"""One entry of the race: an algorithm with its settings, and its runs from the dense weights to the scheme. Imports config, errors, graph, pruners/base, schemes and tasks of npas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stages.config import SearchPruner
from stages.errors import Interrupted, NpasError
from stages.graph import trace
from stages.progress import Progress, Silent
from stages.pruners.base import Pruner
from stages.schemes import Scheme, check_zeros
from stages.tasks import Task, feature_layers, fit, recalibrate_bn
from stages.tasks.train import cpu_threads
from stages.tasks.trainer import apply_masks_

SILENT = Silent()
Table = dict[str, Callable[[nn.Module, Scheme, SearchPruner], Pruner]]


@dataclass(frozen=True)
class Entry:
    """A pruning algorithm, with or without distillation from the dense network, at a peak learning rate. ``label`` tells it from the others: "admm+distill", or "admm+distill@0.003"."""

    algorithm: str
    distill: bool
    lr: float
    label: str

    @property
    def text(self) -> str:
        """For the screen: "admm + distillation, lr 0.003"."""
        return self.label.replace("+distill", " + distillation").replace("@", ", lr ")

    @property
    def key(self) -> tuple[str, bool, float]:
        """What decides how its runs end, whoever else races."""
        return self.algorithm, self.distill, self.lr


@dataclass(frozen=True)
class Pruned:
    """What a run ends with: the network, the masks that hold in it, and one row per epoch."""

    module: nn.Module
    masks: dict[str, Tensor]
    curve: list[dict[str, Any]]


def entries(settings: SearchPruner) -> list[Entry]:
    """Who runs, in order: each algorithm without and with distillation, as ``settings.distill`` has it, at each learning rate (``learning_rates``, or ``lr`` alone)."""
    ways = {"both": (False, True), "yes": (True,), "no": (False,)}[settings.distill]
    rates = settings.learning_rates or (settings.lr,)
    return [
        Entry(algorithm, way, rate, algorithm + "+distill" * way + f"@{rate:g}" * (len(rates) > 1))
        for algorithm in settings.algorithms for way in ways for rate in rates
    ]  # fmt: skip


class Runner:
    """Runs entries from the same dense network to the same scheme, with checkpoints in ``folder``; they are distilled from ``teacher`` (None: from the dense network)."""

    def __init__(
        self, task: Task, dense: nn.Module, scheme: Scheme, settings: SearchPruner, folder: Path, table: Table, progress: Progress = SILENT,
        teacher: nn.Module | None = None,
    ):  # fmt: skip
        self.task, self.dense, self.scheme, self.settings, self.folder, self.table, self.progress = task, dense, scheme, settings, folder, table, progress
        self.teacher = dense if teacher is None else teacher
        self.features = feature_layers(trace(self.teacher, task.example()), self.teacher) if settings.feature_weight else ()

    def checkpoint(self, entry: Entry, epochs: float) -> Path:
        """Where a run of ``epochs`` keeps its state."""
        return self.folder / f"{entry.algorithm}{'+distill' * entry.distill}@{entry.lr:g}-{epochs:g}.pt"

    def run(self, entry: Entry, epochs: float, description: str) -> Pruned:
        """Prune a copy of the dense network in ``epochs``; continues from its checkpoint, which the caller deletes."""
        s, module = replace(self.settings, lr=entry.lr), copy.deepcopy(self.dense)
        pruner = self.table[entry.algorithm](module, self.scheme, s)
        pruner.prepare(self.task)
        curve = fit(module, self.task, epochs=epochs, lr=s.lr, weight_decay=s.weight_decay, seed=s.seed, teacher=self.teacher if entry.distill else None, distill=s.distill_weight,
                    temperature=s.temperature, masks=pruner.masks, hooks=pruner, checkpoint=self.checkpoint(entry, epochs), progress=self.progress, description=description,
                    label_smoothing=s.label_smoothing, schedule=s.schedule, ema=s.ema, align=s.feature_weight, features=self.features)  # fmt: skip
        if s.recalibrate:
            with cpu_threads(self.task.threads):
                recalibrate_bn(module, self.task)
            apply_masks_(module, pruner.masks)  # a pruned channel's statistics are 0
        masks = {name: mask.cpu() for name, mask in pruner.masks.items()}
        check_zeros(module, self.scheme, masks)
        return Pruned(module, masks, curve)

    def row(self, entry: Entry, epochs: float, description: str = "") -> dict[str, Any]:
        """A run as a row of race.json: ``entry``, ``algorithm``, ``distill``, ``lr``, ``epochs``, ``accuracy``, ``curve``, ``error``. A failure is a row too."""
        row = failed_row(entry, epochs, "")
        try:
            pruned = self.run(entry, epochs, description)
            return row | {"curve": pruned.curve, "accuracy": self.settled_accuracy(pruned.module)}
        except Interrupted:
            raise
        except Exception as error:  # whatever an algorithm may raise: the others still run
            self.checkpoint(entry, epochs).unlink(missing_ok=True)
            return row | {"error": " ".join((str(error) if isinstance(error, NpasError) else f"{type(error).__name__}: {error}").split())}

    def settled_accuracy(self, module: nn.Module) -> float:
        """Accuracy on val with batch norms estimated anew: after few steps their running means still lag behind the weights, which says nothing about the algorithm."""
        with cpu_threads(self.task.threads):
            if not self.settings.recalibrate:
                recalibrate_bn(module, self.task)
            return self.task.evaluate(module)


def failed_row(entry: Entry, epochs: float, error: str) -> dict[str, Any]:
    """The row of a run without a result."""
    return {"entry": entry.label, "algorithm": entry.algorithm, "distill": entry.distill, "lr": entry.lr, "epochs": epochs, "accuracy": None, "curve": [], "error": error}
