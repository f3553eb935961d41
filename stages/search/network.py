"""The network that is searched and what builds its candidates, as every process of the search opens them. Imports artifacts, config, graph, schemes and tasks of npas."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from stages.artifacts import load_checkpoint, save_checkpoint, sha256, state_dir, state_key
from stages.config import Config
from stages.graph import Graph
from stages.graph.tracing import trace
from stages.progress import Progress, Silent
from stages.schemes.compensate import Reads, learn_reads
from stages.search.candidate import NOTHING, Candidates, searched_types
from stages.search.reconstruct import Reconstructed, load_or_reconstruct
from stages.search.trials import code_version
from stages.tasks import Task, load_network, make_task
from stages.tasks.train import cpu_threads

MODEL = "replace_ops/model.pt"
RECONSTRUCTION = ("search/approximate.py", "search/reconstruct.py", "schemes/patches.py", "schemes/shrinkage.py", "graph", "tasks")  # the code that decides what new filter types begin with
COMPENSATION = ("schemes/compensate.py", "schemes/patches.py", "schemes/shrinkage.py", "graph", "tasks")  # the code that decides what layers are seen to read
SILENT = Silent()


def open_network(config: Config) -> tuple[Task, nn.Module, Graph]:
    """The task, the network of replace-ops, and its graph."""
    task = make_task(config.task)
    network = load_network(MODEL, task)
    return task, network, trace(network, task.example())


def open_candidates(config: Config, task: Task, network: nn.Module, graph: Graph, progress: Progress = SILENT) -> Candidates:
    """What builds the candidates: initial weights for every filter type, and what layers read; both are found at the first call and kept in the state folder, for the other processes too."""
    return Candidates(network, graph, _reconstructed(config, task, network, graph, progress), config.search_scheme.grouping, _reads(config, task, network, graph))


def _reconstructed(config: Config, task: Task, network: nn.Module, graph: Graph, progress: Progress) -> Reconstructed:
    c, types = config.search_scheme, searched_types(network, graph, config.search_scheme)
    if not types:
        return NOTHING
    images, count = _calibration(config, task)
    folder = state_dir("reconstruct", state_key(sha256(MODEL), config.task, types, c.calibration, c.sweeps, code_version(RECONSTRUCTION)))
    with cpu_threads(c.train_threads):
        return load_or_reconstruct(folder / "filter_types.pt", network, types, images, count, c.sweeps, progress)


def _reads(config: Config, task: Task, network: nn.Module, graph: Graph) -> dict[str, Reads]:
    c = config.search_scheme
    if not c.compensate:
        return {}
    path = state_dir("compensate", state_key(sha256(MODEL), config.task, c.calibration, code_version(COMPENSATION))) / "reads.pt"
    if not path.exists():
        images, count = _calibration(config, task)
        with cpu_threads(c.train_threads):
            learnt = learn_reads(network, graph, images, count)
        save_checkpoint(path, {"reads": {name: (r.mean, r.root, r.shrunk, r.whole) for name, r in learnt.items()}})
    return {name: Reads(*values) for name, values in load_checkpoint(path)["reads"].items()}


def _calibration(config: Config, task: Task) -> tuple[Iterator[Tensor], int]:
    """The first training images, batch by batch, and their number."""
    count = min(config.search_scheme.calibration, task.size("train"))
    return (task.inputs(batch) for batch in task.batches("train", limit=count)), count
