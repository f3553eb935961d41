"""Short trainings of a pruned CIFAR-10 network, of which recovery.py and grouping.py compare many: their command line, one training, and the journal of those that are finished.

Every finished training is a line of $NPAS_CACHE/benchmarks/<benchmark>/journal.jsonl, every epoch of a running one a checkpoint beside it, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from torch import nn

from benchmarks.projects import home
from stages.artifacts import state_key
from stages.config import SearchPruner
from stages.config import Task as TaskConfig
from stages.graph import Graph
from stages.pruners import PRUNERS
from stages.pruners.entry import Runner, entries
from stages.pruners.journal import Journal, code_version
from stages.schemes import Scheme, uniform_scheme
from stages.tasks import Task
from stages.tasks.train import cpu_threads

Finished = Callable[[dict[str, Any], Callable[[Path], dict[str, Any]]], dict[str, Any]]


def parser(about: str) -> argparse.ArgumentParser:
    """The options that such benchmarks share."""
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet20", choices=("resnet20", "resnet56"))
    p.add_argument("--epochs", type=float, default=1.0)
    p.add_argument("--images", type=int, default=10000, help="training images (0: all 45,000)")
    p.add_argument("--seeds", type=lambda t: [int(x) for x in t.split(",")], default=[0])
    p.add_argument("--algorithm", default="magnitude", choices=tuple(PRUNERS))
    p.add_argument("--rate", type=float, default=3.0)
    p.add_argument("--lr", type=float, default=0.002)
    p.add_argument("--threads", type=int, default=1, help="for training")
    p.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return p


def task_config(o: argparse.Namespace) -> TaskConfig:
    """CIFAR-10 with shifts and mirror images."""
    return TaskConfig(model=f"benchmarks.shared_data.networks:{o.model}", data="benchmarks.shared_data.cifar10:data", batch_size=128, augment="crop", precision=o.precision,
                      threads=o.threads, train_limit=o.images)  # fmt: skip


def settings(o: argparse.Namespace, seed: int) -> SearchPruner:
    """The algorithm with fine-tuning on the labels and nothing else."""
    return SearchPruner(algorithms=(o.algorithm,), distill="no", lr=o.lr, weight_decay=0.01, recalibrate=False, seed=seed)


def inner_scheme(graph: Graph, pruning: str, rate: float, block: int) -> Scheme:
    """The uniform scheme, but the first convolution stays dense."""
    uniform = uniform_scheme(graph, pruning, rate, block)
    return Scheme({path: layer for path, layer in uniform.layers.items() if path != graph.prunable[0].module}, uniform.coupled)


def trained(task: Task, dense: nn.Module, scheme: Scheme, chosen: SearchPruner, epochs: float, state: Path) -> dict[str, Any]:
    """One training: accuracy on ``val`` and ``test``, ``seconds``, ``curve``. Its checkpoint lies in the folder ``state``, which is gone at the end."""
    state.mkdir(exist_ok=True)
    runner, (entry,), started = Runner(task, dense, scheme, chosen, state, PRUNERS), entries(chosen), time.monotonic()
    pruned = runner.run(entry, epochs, "")
    seconds = time.monotonic() - started
    with cpu_threads(task.threads):
        row = {split: task.evaluate(pruned.module, split) for split in ("val", "test")}
    runner.checkpoint(entry, epochs).unlink()
    state.rmdir()
    return row | {"seconds": seconds, "curve": pruned.curve}


@contextmanager
def journal(benchmark: str) -> Iterator[Finished]:
    """Gives ``finished(what, measure)``: the row of what ``what`` describes (with this code), from the journal, or else from ``measure(folder for its checkpoint)``."""
    folder, version = home(benchmark), code_version()
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / "journal.jsonl") as rows:
        known = {row["key"]: row for row in rows.rows}

        def finished(what: dict[str, Any], measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
            key = state_key(what, version)
            if key not in known:
                known[key] = {"key": key, **measure(folder / key)}
                rows.append(known[key])
            return known[key]

        yield finished


def write(o: argparse.Namespace, name: str, text: str, rows: list[dict[str, Any]]) -> None:
    """The table on the screen, options and rows as JSON in ``o.out``."""
    print(text)
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / f"{name}.json").write_text(json.dumps({"options": {k: str(v) for k, v in vars(o).items()}, "rows": rows}, indent=1) + "\n", encoding="utf-8")
