"""The search over pruning algorithms (NPAS, section 5.3): every entry runs a few epochs, the best one runs to the end. Imports pruners, schemes and tasks of npas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stages.config import SearchPruner
from stages.errors import Interrupted, NpasError
from stages.progress import Progress, Silent
from stages.pruners.base import Pruner
from stages.pruners.journal import Journal
from stages.schemes import Scheme, check_zeros, make_masks
from stages.tasks import Task, fit, recalibrate_bn
from stages.tasks.train import cpu_threads

SILENT = Silent()
Table = dict[str, Callable[[nn.Module, Scheme, SearchPruner], Pruner]]


@dataclass(frozen=True)
class Entry:
    """One runner: an algorithm, with or without distillation from the dense network."""

    algorithm: str
    distill: bool

    @property
    def label(self) -> str:
        """Key in journals and tables: "admm+distill"."""
        return self.algorithm + "+distill" * self.distill

    @property
    def text(self) -> str:
        """For the screen: "admm + distillation"."""
        return self.algorithm + " + distillation" * self.distill


@dataclass(frozen=True)
class Pruned:
    """What a run ends with: the network, the masks that hold in it, and one row per epoch."""

    module: nn.Module
    masks: dict[str, Tensor]
    curve: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """The race's result: the winner, its full run, and one row per entry (``entry``, ``algorithm``, ``distill``, ``accuracy``, ``curve``, ``error``)."""

    winner: Entry
    pruned: Pruned
    scores: list[dict[str, Any]]


def entries(settings: SearchPruner) -> list[Entry]:
    """Who runs, in order: each algorithm without and with distillation, as ``settings.distill`` has it."""
    ways = {"both": (False, True), "yes": (True,), "no": (False,)}[settings.distill]
    return [Entry(algorithm, way) for algorithm in settings.algorithms for way in ways]


class Race:
    """Runs entries from the same dense network to the same scheme."""

    def __init__(self, task: Task, dense: nn.Module, scheme: Scheme, settings: SearchPruner, folder: Path, progress: Progress, table: Table):
        self.task, self.dense, self.scheme, self.settings, self.folder, self.progress, self.table = task, dense, scheme, settings, folder, progress, table

    def run(self, entry: Entry, epochs: float, checkpoint: Path, description: str) -> Pruned:
        """Prune a copy of the dense network in ``epochs``; continues from ``checkpoint``."""
        s, module = self.settings, copy.deepcopy(self.dense)
        pruner = self.table[entry.algorithm](module, self.scheme, s)
        curve = fit(module, self.task, epochs=epochs, lr=s.lr, weight_decay=s.weight_decay, seed=s.seed, teacher=self.dense if entry.distill else None, distill=s.distill_weight,
                    temperature=s.temperature, masks=pruner.masks, hooks=pruner, checkpoint=checkpoint, progress=self.progress, description=description)  # fmt: skip
        masks = {name: mask.cpu() for name, mask in pruner.masks.items()}
        check_zeros(module, self.scheme, masks)
        return Pruned(module, masks, curve)

    def score(self, entry: Entry, description: str) -> dict[str, Any]:
        """The row of one entry; a failure is a row too."""
        row: dict[str, Any] = {"entry": entry.label, "algorithm": entry.algorithm, "distill": entry.distill, "accuracy": None, "curve": [], "error": ""}
        checkpoint = self.folder / f"{entry.label}.pt"
        try:
            pruned = self.run(entry, self.settings.race_epochs, checkpoint, description)
            accuracy = self.settled_accuracy(pruned.module)
        except Interrupted:
            raise
        except Exception as error:  # whatever an algorithm may raise: the others still run
            checkpoint.unlink(missing_ok=True)
            return row | {"error": " ".join((str(error) if isinstance(error, NpasError) else f"{type(error).__name__}: {error}").split())}
        return row | {"curve": pruned.curve, "accuracy": accuracy}

    def settled_accuracy(self, module: nn.Module) -> float:
        """Accuracy on val with batch norms estimated anew: after few steps their running means still lag behind the weights, which says nothing about the algorithm."""
        with cpu_threads(self.task.threads):
            recalibrate_bn(module, self.task)
            return self.task.evaluate(module)

    def scores(self) -> list[dict[str, Any]]:
        """One row per entry; finished ones come from the journal, failed ones are tried again."""
        runners, rows = entries(self.settings), []
        with Journal(self.folder / "race.jsonl") as journal:
            known = {row["entry"]: row for row in journal.rows if not row["error"]}
            for number, entry in enumerate(runners, 1):
                row, place = known.get(entry.label), f"race {number}/{len(runners)}  {entry.text}"
                if row is None:
                    row = self.score(entry, place)
                    journal.append(row)
                (self.folder / f"{entry.label}.pt").unlink(missing_ok=True)  # only now: a kill between the two costs no epoch
                rows.append(row)
                said = f"failed: {row['error']}" if row["error"] else f"{self.task.metric_name} {100 * row['accuracy']:.1f}"
                self.progress.say(f"{place}  {said}{'  (earlier run)' * (entry.label in known)}")
        return rows


def race(
    task: Task, dense: nn.Module, scheme: Scheme, settings: SearchPruner, folder: Path, progress: Progress = SILENT, table: Table | None = None
) -> Outcome:
    """Find the algorithm that prunes ``dense`` (left as it is) best to ``scheme`` and run it to the end.

    Each entry runs ``race_epochs``; the best accuracy on val (batch norms estimated anew) wins, the first of equals; it starts again from the dense weights and runs ``epochs``. ``folder`` holds the journal of finished entries
    and the checkpoints of running ones, so that the same call after kill -9 repeats at most one epoch. The caller deletes ``*.pt`` there when it has saved the result.
    Raises UsageError for a scheme that doesn't fit the network, NpasError when every entry failed, Interrupted on Ctrl-C.
    """
    from stages.pruners import PRUNERS

    make_masks(dense, scheme)  # a scheme that doesn't fit is the caller's error, not an entry's
    running = Race(task, dense, scheme, settings, folder, progress, PRUNERS if table is None else table)
    try:
        scores = running.scores()
        finished = [row for row in scores if not row["error"]]
        if not finished:
            raise NpasError(f"Every entry of the race failed; the first: {scores[0]['error']}", "Lower search_pruner.lr, or read each entry's error above.")
        best = max(finished, key=lambda row: row["accuracy"])
        winner = Entry(best["algorithm"], best["distill"])
        pruned = running.run(winner, settings.epochs, folder / f"{winner.label}-final.pt", f"{winner.text} to the end")
    except KeyboardInterrupt:
        raise Interrupted("The search of pruning algorithms was stopped.", "Run the same command to continue; no finished entry or epoch is lost.") from None
    return Outcome(winner, pruned, scores)
