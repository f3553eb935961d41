"""The search over pruning algorithms (NPAS, section 5.3): successive halving, then the winner runs to the end. Imports errors, progress and pruners/ of npas, and what those import.

A rung is a complete short training: every schedule (learning rate, gradual, ADMM) is as long as the rung and ends at the scheme. Whoever goes on starts again from the dense weights with the
longer schedule, for only a finished schedule shows what an algorithm can do: half way up its ramp, gradual pruning or ADMM has hardly pruned and would beat all that have; and a network
that a short schedule has pruned keeps the positions which that schedule chose. The price is at most 1 / eta of what the later rungs cost. A run that was interrupted continues at its last epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stages.config import SearchPruner
from stages.errors import Interrupted, NpasError
from stages.progress import Progress
from stages.pruners.entry import SILENT, Entry, Pruned, Runner, Table, entries
from stages.pruners.halving import best, plan
from stages.pruners.journal import Journal
from stages.pruners.workers import Workers
from stages.schemes import Scheme, make_masks
from stages.tasks import Task

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The race's result: the winner, its run to the end, and the rows of each rung (see Runner.row), in the order of the entries."""

    winner: Entry
    pruned: Pruned
    rungs: list[list[Row]]

    @property
    def scores(self) -> list[Row]:
        """Each entry's row of the last rung that it reached."""
        return list({row["entry"]: row for rung in self.rungs for row in rung}.values())


class Race:
    """Rung after rung, with a journal of finished runs."""

    def __init__(self, runner: Runner, journal: Journal, workers: Workers):
        self.runner, self.settings, self.progress, self.journal, self.workers = runner, runner.settings, runner.progress, journal, workers
        self.known = {_key(row): row for row in journal.rows if not row["error"]}

    def rungs(self) -> list[list[Row]]:
        """The rows of every rung."""
        running, s, found = entries(self.settings), self.settings, []
        rungs = plan(len(running), s.race_epochs, s.race_eta, s.epochs, s.race_budget)
        for number, rung in enumerate(rungs):
            rows = self.compete(running, rung.epochs, f"race of {rung.epochs:g} epochs")
            found.append(list(rows))
            finished = [(entry, row["accuracy"]) for entry, row in zip(running, rows, strict=True) if not row["error"]]
            if not finished:
                raise NpasError(f"Every entry of the race failed; the first: {rows[0]['error']}", "Lower search_pruner.lr, or read each entry's error above.")
            count = rungs[number + 1].entries if number + 1 < len(rungs) else 1
            running = [finished[i][0] for i in best([score for _, score in finished], count)]
            if len(running) == 1:
                break
        return found

    def compete(self, running: Sequence[Entry], epochs: float, title: str) -> list[Row]:
        """A row for each entry, in order; finished ones come from the journal, failed ones are tried again."""
        rows = {entry: self.known[*entry.key, epochs] | {"entry": entry.label} for entry in running if (*entry.key, epochs) in self.known}
        done = 0

        def tell(entry: Entry, row: Row, more: str = "") -> None:
            nonlocal done
            done += 1
            said = f"failed: {row['error']}" if row["error"] else f"{self.runner.task.metric_name} {100 * row['accuracy']:.1f}"
            self.progress.say(f"{title} {done}/{len(running)}  {entry.text}  {said}{more}")

        for entry, row in list(rows.items()):
            tell(entry, row, "  (earlier run)")
        for entry, row in self.workers.rows([entry for entry in running if entry not in rows], epochs, title):
            self.journal.append(row)
            if epochs < self.settings.epochs:  # a run of full length may be the winner's run to the end
                self.runner.checkpoint(entry, epochs).unlink(missing_ok=True)  # only now: a kill between the two costs no epoch
            rows[entry] = row
            tell(entry, row)
        return [rows[entry] for entry in running]


def _key(row: Row) -> tuple[str, bool, float, float]:
    return row["algorithm"], row["distill"], row["lr"], row["epochs"]


def race(
    task: Task, dense: nn.Module, scheme: Scheme, settings: SearchPruner, folder: Path, progress: Progress = SILENT, table: Table | None = None,
    make_task: Callable[[], Task] | None = None, teacher: nn.Module | None = None,
) -> Outcome:  # fmt: skip
    """Find the algorithm that prunes ``dense`` (left as it is) best to ``scheme`` and run it to the end. Entries that distil learn from ``teacher`` (None: from ``dense``).

    The best accuracy on val (batch norms estimated anew) wins a rung, the first of equals; the winner starts again from the dense weights and runs ``epochs``. ``folder`` holds the
    journal of finished runs and the checkpoints of running ones, so that the same call after kill -9 repeats at most one epoch of each running entry, and a race with more entries,
    rungs or epochs runs only what is new. The caller deletes ``*.pt`` there when it has saved the result. With several ``settings.workers`` each makes the task anew by ``make_task`` (picklable).
    Raises UsageError for a scheme that doesn't fit the network, NpasError when every entry failed, Interrupted on Ctrl-C.
    """
    from stages.pruners import PRUNERS

    make_masks(dense, scheme)  # a scheme that doesn't fit is the caller's error, not an entry's
    runner = Runner(task, dense, scheme, settings, folder, PRUNERS if table is None else table, progress, teacher)
    try:
        with Journal(folder / "race.jsonl") as journal, Workers(runner, make_task) as workers:
            rungs = Race(runner, journal, workers).rungs()
            winner = _winner(rungs, entries(settings))
            pruned = runner.run(winner, settings.epochs, f"{winner.text} to the end")
    except KeyboardInterrupt:
        raise Interrupted("The search of pruning algorithms was stopped.", "Run the same command to continue; no finished entry or epoch is lost.") from None
    return Outcome(winner, pruned, rungs)


def _winner(rungs: Sequence[Sequence[Row]], runners: Sequence[Entry]) -> Entry:
    """The best of the last rung; the only entry when there is but one."""
    if not rungs:
        return runners[0]
    top = max((row for row in rungs[-1] if not row["error"]), key=lambda row: row["accuracy"])
    return next(entry for entry in runners if entry.label == top["entry"])
