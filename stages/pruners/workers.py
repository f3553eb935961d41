"""Who runs the entries of the race: this process, or several (stages/parallel.py). Imports errors, parallel, pruners/entry and tasks of npas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.config import SearchPruner
from stages.errors import NpasError
from stages.parallel import Pool, open_pool
from stages.pruners.entry import Entry, Runner, Table, failed_row
from stages.schemes import Scheme
from stages.tasks import Task

Request = tuple[Entry, float]


class Workers:
    """``rows`` runs entries: one after the other here (``workers`` "1"), else side by side in processes that start with the first entry and share out the cores."""

    def __init__(self, runner: Runner, make_task: Callable[[], Task] | None):
        self.runner, self.make_task = runner, make_task
        self._stack = ExitStack()
        self._pool: Pool | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, waiting: Sequence[Entry], epochs: float, title: str) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """Run each of ``waiting`` for ``epochs``: the entries with their rows (Runner.row), as they finish."""
        if self.runner.settings.workers == "1":
            for entry in waiting:
                yield entry, self.runner.row(entry, epochs, f"{title}: {entry.text}")
        elif waiting:
            pool = self._pool = self._pool or self._stack.enter_context(self._open())
            for entry in waiting:
                pool.submit(entry, (entry, epochs))
            for _ in waiting:
                entry, answer = pool.next()
                yield entry, failed_row(entry, epochs, answer.message) if isinstance(answer, NpasError) else answer

    def _open(self) -> Pool:
        if self.make_task is None:
            raise ValueError("several workers need make_task")
        r, cores, workers = self.runner, os.sched_getaffinity(0), self.runner.settings.workers
        threads = r.task.threads or (1 if workers == "ray" else max(1, len(cores) // int(workers)))
        return open_pool(
            make_handler, self.make_task, r.dense, r.scheme, r.settings, r.folder, r.table, threads, r.teacher,
            workers=workers, cpus=cores, threads=threads, cuda_devices=torch.cuda.device_count() if r.task.device.type == "cuda" else 0,
        )  # fmt: skip


def make_handler(
    make_task: Callable[[], Task], dense: nn.Module, scheme: Scheme, settings: SearchPruner, folder: Path, table: Table, threads: int, teacher: nn.Module
) -> Callable[[Request], dict[str, Any]]:
    """What a worker process does with a request."""
    task = make_task()
    task.threads = threads
    folder.mkdir(parents=True, exist_ok=True)  # on another machine of a cluster
    runner = Runner(task, dense, scheme, settings, folder, table, teacher=teacher)
    return lambda request: runner.row(*request)
