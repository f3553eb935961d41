"""How fast a candidate is: compiled, and measured on the device beside the dense network. Runs in the one measuring process. Imports config, compiler, devices and schemes of npas."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.compiler.api import compile_model
from stages.config import Config
from stages.devices import TimingProtocol, open_device, speedup
from stages.devices.steady import measure_steadily
from stages.errors import InvalidMeasurement
from stages.parallel import Handler
from stages.progress import Silent
from stages.schemes.prune import prune_
from stages.search.candidate import Candidates
from stages.search.network import open_network

REFERENCE_RUNS = 100  # of the dense network alone at the start, and of the candidate at the end
LONGER, ROUNDS = 3, 3  # near the budget: that many times the runs, and at most that many measurements in all
WARM_UP = 0.2  # seconds; the machine is busy with the search anyway


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
