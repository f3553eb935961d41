"""npas lifelong: learn one more task in the network that lifelong/ holds, and compile the networks of learnt ones. No earlier task's network changes by a bit (LPS, Wang et al. 2020).

Reads and writes lifelong/network.pt and tasks.json. It isn't part of dvc repro: what it makes depends on what was learnt before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import load_checkpoint, plain, save_checkpoint, sha256, state_dir, state_key, write_json
from stages.config import Config
from stages.errors import NpasError, UsageError
from stages.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from stages.lifelong import Commons
    from stages.tasks import Task

NETWORK, TASKS = "lifelong/network.pt", "lifelong/tasks.json"


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Learn ``lifelong.name``, then compile ``lifelong.compile``. An interrupted training goes on from its last epoch. Returns what tasks.json holds."""
    c = config.lifelong
    if not c.name and not c.compile:
        raise UsageError("No task is named.", "Give one to learn, --name digits, or a learnt one to compile, --compile digits.")
    if c.name and not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", c.name):
        raise UsageError(f"'{c.name}' can't be the name of a task.", "Letters, digits, - and _ can, the first one a letter or digit.")
    commons = _learnt(config, progress) if c.name else _load()
    libraries = {name: _compiled(commons, name, config, progress) for name in c.compile}
    return summary(commons) | ({"libraries": libraries} if libraries else {})


def summary(commons: Commons) -> dict[str, Any]:
    """What tasks.json holds. ``own``, ``uses`` and ``free`` are shares of the weights in common; ``digest`` is that of every bit of a task's network, and stays what it is."""
    from stages.lifelong.commons import FREE

    tasks = {
        name: {"number": learnt.number, "own": commons.weights(learnt.number) / commons.size, "uses": commons.used(name) / commons.size, "digest": commons.digest(name), **learnt.facts}
        for name, learnt in commons.tasks.items()
    }  # fmt: skip
    return {"model": commons.model, "weights": commons.size, "free": commons.weights(FREE) / commons.size, "tasks": tasks}


def _load() -> Commons:
    from stages.lifelong import Commons

    return Commons.from_checkpoint(load_checkpoint(NETWORK))


def _learnt(config: Config, progress: Progress) -> Commons:
    """The network with the new task, saved."""
    from stages.lifelong import CHECKPOINTS, learn
    from stages.lifelong.network import classes_of, loaded
    from stages.pruners.journal import code_version
    from stages.tasks import make_task
    from stages.tasks.train import cpu_threads

    c = config.lifelong
    settings = replace(config.task, data=c.data or config.task.data)
    before = sha256(NETWORK) if Path(NETWORK).exists() else None
    known = _load() if before else None
    if known and c.name in known.tasks:
        raise UsageError(f"The task '{c.name}' is learnt already, and stays as it is.", f"Choose another name; --compile {c.name} compiles its network.")
    task = make_task(settings)
    commons, start = _begin(known, task, config)
    weights = sha256(config.task.weights) if config.task.weights else None
    folder = state_dir("lifelong", state_key(settings, c, before, weights, code_version("lifelong")))
    commons = learn(commons, c.name, task, start, c, folder, progress)
    network = loaded(commons, c.name, task.model())
    with cpu_threads(task.threads):
        accuracy = {split: task.evaluate(network, split) for split in ("val", "test")}
    facts = {"metric": task.metric_name, "accuracy": accuracy, "classes": classes_of(task), "task": plain(settings), "config": plain(c)}
    facts |= {name: value.tolist() for name in ("mean", "std") if (value := getattr(task, name, None)) is not None}
    commons = commons.told(c.name, facts)
    if before != (sha256(NETWORK) if Path(NETWORK).exists() else None):
        raise NpasError(f"Another command has changed {NETWORK} meanwhile.", "Run the same command again: it learns the task beside the new ones.")
    told = summary(commons)
    write_json(TASKS, told)
    save_checkpoint(NETWORK, commons.to_checkpoint())
    for name in CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    row = told["tasks"][c.name]
    progress.say(
        f"{c.name}: {task.metric_name} {100 * accuracy['val']:.1f} val, {100 * accuracy['test']:.1f} test; {100 * row['own']:.0f} % of the weights are its own, "
        f"{100 * (row['uses'] - row['own']):.0f} % are earlier tasks', {100 * told['free']:.0f} % are free"
    )
    return commons


def _begin(known: Commons | None, task: Task, config: Config) -> tuple[Commons, nn.Module]:
    """(the network so far, the module that the training starts from)."""
    from stages.graph import trace
    from stages.graph.rewrite import find_replacements
    from stages.lifelong import check_fits, found
    from stages.lifelong.found import head_tensors
    from stages.lifelong.network import replaced
    from stages.tasks.models import load_weights

    module, example = task.model(), task.example()
    if known:
        check_fits(known, module, example.shape[1:])
    graph = trace(module.eval(), example)
    if config.task.weights:
        load_weights(module, config.task.weights, known.heads if known else head_tensors(graph))
    commons = known or found(module, graph, config.task.model, config.lifelong.block, [r.to_json() for r in find_replacements(graph)])
    return commons, replaced(module, commons)


def _compiled(commons: Commons, name: str, config: Config, progress: Progress) -> str:
    """Compile the network of a task and save it; returns the library's path."""
    from stages.compiler.api import compile_model
    from stages.lifelong.network import example_of, network_of

    model = compile_model(network_of(commons, name), example_of(commons), commons.scheme(name), threads=config.compile.threads, tolerance=config.compile.tolerance)
    path = Path("lifelong") / f"{name}.so"
    model.save(path)
    progress.say(f"{path}: {model.manifest['macs'] / 1e6:.1f} of {model.manifest['macs_dense'] / 1e6:.1f} million multiply-accumulates, largest error {model.manifest['max_abs_err']:.1e}")
    return str(path)
