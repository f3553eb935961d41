"""How fast a candidate is: compiled for the device, and measured there beside the dense network. Runs in that device's measuring process. Imports config, compiler, devices and schemes of npas."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.compiler.api import compile_model
from stages.compiler.deploy import save_together
from stages.compiler.model import CompiledModel
from stages.compiler.target import HOST
from stages.config import Config
from stages.devices import Expected, TimingProtocol, open_device, speedup
from stages.devices.steady import measure_steadily
from stages.errors import InvalidMeasurement
from stages.parallel import Handler
from stages.progress import Silent
from stages.schemes import Scheme
from stages.schemes.prune import prune_
from stages.search.candidate import Candidate, Candidates
from stages.search.measuring import READY
from stages.search.network import open_network

REFERENCE_RUNS = 100  # of the dense network alone at the start, and of the candidate at the end
LONGER, ROUNDS = 3, 3  # near the budget: that many times the runs, and at most that many measurements in all
PROFILED = 30  # runs of one profile of the kernels
WARM_UP = 0.2  # seconds; the machine is busy with the search anyway


@dataclass(frozen=True)
class How:
    """What of the other sections decides a latency: it must be that of the network as npas compile makes it and npas bench measures it. ``cluster`` is a phone's; here the search has cores of its own."""

    threads: int
    mcpu: str | None
    cluster: str
    tolerance: float


def how_measured(config: Config) -> How:
    """As ``config`` asks for it."""
    return How(config.compile.threads, config.compile.mcpu, "" if config.probe.device == HOST else config.bench.cluster, config.compile.tolerance)


@dataclass(frozen=True)
class LayersOf:
    """A request: what share of the dense network's time each layer of this candidate takes, by module path. Both are compiled for this machine and timed here, whatever the device."""

    scheme: Scheme


def serve_latency(config: Config, spec: str) -> Handler:
    """In the measuring process of the device ``spec``: answers None with the dense network's ms; (scheme, runs, budget ratio) with (ratio, its 95 % interval, dense ms of the same
    rounds); LayersOf with shares; and READY with nothing, once the device can measure.

    The budget is compared with ``ratio * dense ms at the start``, not with the candidate's raw ms: training runs beside this, and whatever slows the machine slows both networks of a
    round. Nor is one phone of a model as fast as the other. What keeps a phone from measuring is raised at once (measuring.AWAY).
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # before its first use; torch would count the cores of the machine
    task, network, graph = open_network(config)
    candidates = Candidates(network, graph)  # latency asks for no weights
    dense = Candidate(network.eval(), graph, Scheme())
    bench = _Bench(spec, config, task.example())
    reference = bench.compiled(dense)

    def answer(request: Any) -> Any:
        if request == READY:
            return bench.device.ready()
        if request is None:
            return float(np.median(bench.sample({"dense": (dense, reference)}, REFERENCE_RUNS)[0]))
        if isinstance(request, LayersOf):
            built = pruned(request.scheme)
            return layer_shares(bench.compiled_here(built), dense_here(), {layer.name: layer.module for layer in built.graph})
        scheme, runs, limit = request
        built = pruned(scheme)
        pair = {"candidate": (built, bench.compiled(built)), "dense": (dense, reference)}
        rounds = [bench.sample(pair, runs)]
        while (found := relative(rounds))[1] < limit < found[2] and len(rounds) < ROUNDS:
            rounds.append(bench.sample(pair, runs * LONGER))  # within the noise of the budget: measure longer
        return found

    def pruned(scheme: Scheme) -> Candidate:
        built = candidates.build(scheme)
        prune_(built.module, built.scheme)
        return built

    @cache
    def dense_here() -> CompiledModel:
        return bench.compiled_here(dense)

    return answer


class _Bench:
    """A device and how networks are compiled for it and timed on it."""

    def __init__(self, spec: str, config: Config, example: Tensor):
        self.device, self.how, self.example = open_device(spec, hosts=config.probe.hosts), how_measured(config), example
        self.here = self.device.target == HOST

    def compiled(self, network: Candidate) -> CompiledModel:
        """For this machine it is compared with PyTorch now; for a phone there, before it is timed."""
        target = f"{self.device.target}:{self.how.mcpu}" if self.how.mcpu else self.device.target
        return compile_model(network.module, self.example, network.scheme, target, self.how.threads, graph=network.graph, tolerance=self.how.tolerance, check=self.here)

    def compiled_here(self, network: Candidate) -> CompiledModel:
        """For this machine."""
        return compile_model(network.module, self.example, network.scheme, threads=self.how.threads, graph=network.graph, check=False)

    def sample(self, networks: dict[str, tuple[Candidate, CompiledModel]], runs: int) -> np.ndarray:
        """Wall ms, (networks, runs), of interleaved rounds. InvalidMeasurement when they never could be trusted."""
        protocol = TimingProtocol(runs=runs, warmup_seconds=WARM_UP, threads=self.how.threads, cluster=self.how.cluster, cool_seconds=0.0)
        expected = None if self.here else Expected(tuple(networks), [self._outputs(candidate) for candidate, _ in networks.values()], self.how.tolerance)
        with tempfile.TemporaryDirectory(prefix="npas-search-") as folder:
            models = save_together({name: made for name, (_, made) in networks.items()}, Path(folder))
            measured = measure_steadily(self.device, models, [self.example.numpy()], protocol, Silent(), expected)
        if not measured.valid:
            raise InvalidMeasurement(f"Never measured validly: {'; '.join(measured.reasons)}.", "Stop other programs, or let the machine cool.")
        return np.array(measured.samples_ms)

    def _outputs(self, candidate: Candidate) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            found = candidate.module(self.example)
        return tuple(o.numpy() for o in (found if isinstance(found, tuple | list) else [found]))


def layer_shares(model: CompiledModel, reference: CompiledModel, modules: Mapping[str, str]) -> dict[str, float]:
    """Time of each module's kernels ("": those of no layer) over that of the whole ``reference``; ``modules`` maps layer names to paths. The smaller of two profiles each, taken in turn."""
    profiles = [(model.profile(PROFILED), reference.profile(PROFILED)) for _ in range(2)]
    whole = min(sum(ms for _, _, ms in dense) for _, dense in profiles)
    found: dict[str, float] = {}
    for number, (layer, _, ms) in enumerate(profiles[0][0]):
        path = modules.get(layer, "")
        found[path] = found.get(path, 0.0) + min(ms, profiles[1][0][number][2]) / whole
    return found


def relative(rounds: list[np.ndarray]) -> tuple[float, float, float, float]:
    """Candidate over dense: ratio of the medians, its 95 % interval, and the dense median in ms, from (2, runs) samples of interleaved rounds."""
    candidate, dense = np.concatenate(rounds, axis=1)
    found = speedup(candidate, dense)  # how many times faster dense is: below 1 for a faster candidate
    return found["ratio"], found["ci95"][0], found["ci95"][1], float(np.median(dense))
