"""What a candidate is worth: its accuracy after a short retraining here, its latency from a process beside it. The one file of search/ that imports tasks, compiler and devices."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.artifacts import sha256, state_dir, state_key
from stages.compiler.api import compile_model
from stages.config import Config
from stages.devices import TimingProtocol, open_device, speedup
from stages.devices.steady import measure_steadily
from stages.errors import InvalidMeasurement
from stages.graph import Graph
from stages.graph.tracing import trace
from stages.progress import Progress, Silent
from stages.schemes.prune import prune_
from stages.search.candidate import Candidate, Candidates, searched_types
from stages.search.loop import Evaluator
from stages.search.reconstruct import load_or_reconstruct
from stages.search.scheme_space import SchemeSpace
from stages.search.space import Choices
from stages.search.trials import Journal, Timing, code_version
from stages.search.worker import Handler, Worker
from stages.tasks import Task, fit, load_network, make_task, recalibrate_bn
from stages.tasks.train import cpu_threads

MODEL = "replace_ops/model.pt"
REFERENCE_RUNS = 100  # of the dense network alone at the start, and of the candidate at the end
LONGER, ROUNDS = 3, 3  # near the budget: that many times the runs, and at most that many measurements in all
RECALIBRATION = 256  # training images for the batch norms of a candidate
SILENT = Silent()
RECONSTRUCTION = ("search/approximate.py", "search/reconstruct.py", "graph", "tasks")  # the code that decides what new filter types begin with
WARM_UP = 0.2  # seconds; the machine is busy with the search anyway


def open_network(config: Config) -> tuple[Task, nn.Module, Graph]:
    """The task, the network of replace-ops, and its graph."""
    task = make_task(config.task)
    network = load_network(MODEL, task)
    return task, network, trace(network, task.example())


def open_candidates(config: Config, task: Task, network: nn.Module, graph: Graph, progress: Progress = SILENT) -> Candidates:
    """What builds the candidates, with initial weights for every filter type; these are found at the first call and kept in the state folder, for the other processes too."""
    c, types = config.search_scheme, searched_types(network, graph, config.search_scheme)
    if not types:
        return Candidates(network, graph)
    count = min(c.calibration, task.size("train"))
    images = (task.inputs(batch) for batch in task.batches("train", limit=count))
    folder = state_dir("reconstruct", state_key(sha256(MODEL), config.task, types, c.calibration, c.sweeps, code_version(RECONSTRUCTION)))
    with cpu_threads(c.train_threads):
        return Candidates(network, graph, load_or_reconstruct(folder / "filter_types.pt", network, types, images, count, c.sweeps, progress))


@contextmanager
def open_evaluator(config: Config, task: Task, network: nn.Module, space: SchemeSpace, journal: Journal) -> Iterator[tuple[Evaluator, float, float]]:
    """The evaluator, the dense latency in ms and the budget in ms; the measuring process ends with the context.

    The dense network is measured once, before any training, and journalled: a search that is continued keeps its budget.
    """
    c, (measuring, training) = config.search_scheme, share_cores(config.search_scheme.train_threads, config.compile.threads)
    candidates = open_candidates(config, task, network, space.graph)
    with Worker(serve_latency, config, c.runs, cpus=measuring) as worker:
        dense_ms = journal.note("dense_ms")
        if dense_ms is None:
            dense_ms = journal.note("dense_ms", worker.call(None))
        budget_ms = c.budget_ms if c.budget_ms is not None else c.budget_ratio * dense_ms

        def timing(choices: Choices, runs: int) -> Timing:
            ratio, low, high, dense = worker.call((space.scheme(choices), runs, budget_ms / dense_ms))
            return Timing(ratio * dense_ms, dense, (low * dense_ms, high * dense_ms))

        def accuracy(choices: Choices) -> float:
            with pinned(training):
                return retrain(candidates.build(space.scheme(choices)), task, config)

        yield (
            Evaluator(accuracy, lambda choices: timing(choices, c.runs), lambda choices: timing(choices, max(c.runs, REFERENCE_RUNS)), task.metric_name),
            dense_ms,
            budget_ms,
        )


def retrain(candidate: Candidate, task: Task, config: Config) -> float:
    """Accuracy on val of the candidate, pruned in one shot and retrained shortly (in place); every candidate sees the same images in the same order.

    The batch norms are then estimated anew: their running averages are far behind after so few steps (measured: 10 % instead of 96 % after one epoch at rate 3).
    """
    c, module = config.search_scheme, candidate.module
    with cpu_threads(c.train_threads):  # of everything: more threads than cores wait for each other
        masks = prune_(module, candidate.scheme)
        fit(module, task, epochs=c.epochs, lr=c.lr, seed=c.seed, limit=c.train_limit, masks=masks, threads=c.train_threads, evaluate=False)
        recalibrate_bn(module, task, limit=RECALIBRATION)
        return task.evaluate(module)


def serve_latency(config: Config, runs: int) -> Handler:
    """In the measuring process: answers None with the dense network's ms, and (scheme, runs, budget ratio) with (ratio, its 95 % interval, dense ms of the same rounds).

    The budget is compared with ``ratio * dense ms at the start``, not with the candidate's raw ms: training runs beside this, and whatever slows the machine slows both networks of a round.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # before its first use; torch would count the cores of the machine
    task, network, graph = open_network(config)
    example, device = task.example(), open_device(config.probe.device, hosts=config.probe.hosts)
    folder = tempfile.TemporaryDirectory(prefix="npas-search-")
    inputs, dense, candidate = [example.numpy()], Path(folder.name, "dense.so"), Path(folder.name, "candidate.so")
    candidates = Candidates(network, graph)  # latency asks for no weights
    threads = config.compile.threads  # the budget is for the network as it will be compiled
    compile_model(network, example, threads=threads, graph=graph).save(dense)

    def answer(request: Any) -> Any:
        assert folder  # lives as long as this function
        if request is None:
            return float(np.median(sample([dense], REFERENCE_RUNS)[0]))
        scheme, runs, limit = request
        built = candidates.build(scheme)
        prune_(built.module, built.scheme)
        compile_model(built.module, example, built.scheme, threads=threads, graph=built.graph).save(candidate)
        return compare([candidate, dense], runs, limit)

    def sample(models: list[Path], runs: int) -> np.ndarray:
        measured = measure_steadily(device, models, inputs, TimingProtocol(runs=runs, warmup_seconds=WARM_UP, threads=threads), Silent())
        if not measured.valid:
            raise InvalidMeasurement(f"Never measured validly: {'; '.join(measured.reasons)}.", "Stop other programs, or let the machine cool.")
        return np.array(measured.samples_ms)

    def compare(models: list[Path], runs: int, limit: float) -> tuple[float, float, float, float]:
        rounds = [sample(models, runs)]
        while (found := relative(rounds))[1] < limit < found[2] and len(rounds) < ROUNDS:
            rounds.append(sample(models, runs * LONGER))  # within the noise of the budget: measure longer
        return found

    return answer


def relative(rounds: list[np.ndarray]) -> tuple[float, float, float, float]:
    """Candidate over dense: ratio of the medians, its 95 % interval, and the dense median in ms, from (2, runs) samples of interleaved rounds."""
    candidate, dense = np.concatenate(rounds, axis=1)
    found = speedup(candidate, dense)  # how many times faster dense is: below 1 for a faster candidate
    return found["ratio"], found["ci95"][0], found["ci95"][1], float(np.median(dense))


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
