"""What the search evaluates with: training here or in workers, latency from a process beside it for each device. With accuracy.py, latency.py and network.py the only files of search/ that import tasks, compiler or devices."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stages.compiler import toolchain
from stages.compiler.target import HOST
from stages.config import Config
from stages.parallel import Pool, open_pool
from stages.progress import Progress
from stages.search.accuracy import FastEvaluation, serve_training
from stages.search.candidate import Candidates
from stages.search.early_stop import StopRule
from stages.search.evaluator import Evaluator, Inline, Trained, Trainers
from stages.search.latency import REFERENCE_RUNS, LayersOf, how_measured, serve_latency
from stages.search.measuring import Measurers
from stages.search.network import MODEL, open_candidates, open_network
from stages.search.scheme_space import SchemeSpace, by_slot
from stages.search.space import Choices
from stages.search.trials import Journal, Timing
from stages.search.worker import Worker
from stages.tasks import Task

__all__ = ["MODEL", "how_measured", "open_candidates", "open_evaluator", "open_network", "share_cores"]

PHONE_SECONDS = 1800.0  # for one measurement there, which may have to wait for reconnections


@contextmanager
def open_evaluator(config: Config, task: Task, candidates: Candidates, space: SchemeSpace, journal: Journal, progress: Progress) -> Iterator[tuple[Evaluator, float, float]]:
    """The evaluator, the dense latency in ms and the budget in ms; every process that it needs ends with the context, in which this thread keeps off the measuring cores.

    The dense network is measured once, before any training, and journalled: a search that is continued keeps its budget.
    """
    c, here = config.search_scheme, config.probe.device == HOST
    measuring, training = share_cores(c.train_threads, config.compile.threads if here else 1)  # for a phone these cores only compile
    fast = FastEvaluation(config, task, candidates)
    with (
        pinned(training),
        open_measurers(config, measuring, progress) as measurers,
        open_trainers(config, task, fast, space, training, progress) as trainers,
    ):
        dense_ms = journal.note("dense_ms")
        if dense_ms is None:
            dense_ms = journal.note("dense_ms", measurers.call(None))
        budget_ms = c.budget_ms if c.budget_ms is not None else c.budget_ratio * dense_ms

        def timing(choices: Choices, runs: int) -> Timing:
            ratio, low, high, dense = measurers.call((space.scheme(choices), runs, budget_ms / dense_ms))
            return Timing(ratio * dense_ms, dense, (low * dense_ms, high * dense_ms))

        def layer_ms(choices: Choices) -> list[float]:
            shares = measurers.call(LayersOf(space.scheme(choices)))
            return [dense_ms * share for share in by_slot(space, shares)]

        yield (
            Evaluator(
                trainers,
                lambda choices: timing(choices, c.runs),
                lambda choices: timing(choices, max(c.runs, REFERENCE_RUNS)),
                lambda choices: fast.one_shot(space.scheme(choices)),
                task.metric_name,
                measurers.size,
                lambda choices: fast.damage(space.scheme(choices)),
                layer_ms,
            ),
            dense_ms,
            budget_ms,
        )


def open_measurers(config: Config, cpus: Collection[int], progress: Progress) -> Measurers:
    """A process on ``cpus`` for each device of probe.device."""
    c, specs = config.search_scheme, [spec.strip() for spec in config.probe.device.split(",")]
    timeout: dict[str, float] = {}
    if config.probe.device != HOST:
        toolchain.prepare(toolchain.STATIC, progress.say)  # the first time takes minutes, which the person is told
        timeout = {"timeout": PHONE_SECONDS}
    return Measurers({spec: Worker(serve_latency, config, spec, cpus=cpus, **timeout) for spec in specs}, progress.say, 60 * c.patience_minutes)


@contextmanager
def open_trainers(config: Config, task: Task, fast: FastEvaluation, space: SchemeSpace, cpus: Collection[int], progress: Progress) -> Iterator[Trainers]:
    """One worker trains in this process; several are processes of their own on ``cpus``, one for each CUDA device in turn where training runs there, or those of a Ray cluster."""
    c = config.search_scheme
    if c.workers == "1":
        yield Inline(lambda choices, rule: fast.train(space.scheme(choices), rule))
        return
    devices = torch.cuda.device_count() if task.device.type == "cuda" else 0
    with open_pool(serve_training, config, workers=c.workers, cpus=cpus, threads=c.train_threads, cuda_devices=devices) as pool:
        if c.workers != "ray" and pool.size * c.train_threads > len(cpus):
            progress.say(f"{pool.size} workers of {c.train_threads} threads share {len(cpus)} cores: more of them won't make it faster")
        if pool.size > c.batch:
            progress.say(f"{pool.size} workers, but search_scheme.batch keeps at least {c.batch} busy: raise it to use all of them")
        yield _Workers(pool, space)


class _Workers:
    """The pool as Trainers: workers know schemes, not choices."""

    def __init__(self, pool: Pool, space: SchemeSpace):
        self._pool, self._space, self.size = pool, space, pool.size

    @property
    def pending(self) -> int:
        return self._pool.pending

    def submit(self, key: Choices, request: tuple[Choices, StopRule | None]) -> None:
        choices, rule = request
        self._pool.submit(key, (self._space.scheme(choices), rule))

    def next(self, timeout: float | None = None) -> tuple[Choices, Trained | Any]:
        return self._pool.next(timeout)


def share_cores(train_threads: int, threads: int = 1) -> tuple[set[int], set[int]]:
    """Cores for (measuring and compiling, training): the last ``threads`` and the others; no split when too few are left for ``train_threads``."""
    cores = sorted(os.sched_getaffinity(0))
    measuring, rest = set(cores[-threads:]), set(cores[:-threads])
    return (measuring, rest) if len(rest) >= train_threads else (set(cores), set(cores))


@contextmanager
def pinned(cpus: Collection[int]) -> Iterator[None]:
    """The calling thread, and those that it starts, on ``cpus`` for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
