"""What the benchmarks of the search's machinery share: a prepared project folder, its network and its space. Imports projects and npas.

Default: the embedded digits and npas_net. Others: ``--params FILE``, a params.yaml of which the sections task, pretrain, replace_ops, search_scheme, search_pruner and compile count, e.g.
``task: {model: "benchmarks.shared_data.networks:resnet20", data: "benchmarks.shared_data.cifar10:data", image_size: 32, augment: crop}`` with NPAS_DATA set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.projects import Project, home
from stages.config import Config
from stages.params import load
from stages.progress import Progress, Silent
from stages.search import evaluate
from stages.search.candidate import Candidates, searched_types
from stages.search.scheme_space import SchemeSpace, focus, scheme_space
from stages.search.space import Choices
from stages.search.survey import climb
from stages.tasks import Task

SECTIONS = ("task", "pretrain", "replace_ops", "search_scheme", "search_pruner", "compile")


@dataclass(frozen=True)
class Prepared:
    """An open project: this process is in its folder, replace-ops has run there."""

    config: Config
    task: Task
    candidates: Candidates
    space: SchemeSpace


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that they all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, help="a params.yaml; default: digits, npas_net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser


def prepare(params: Path | None, **search: Any) -> Prepared:
    """Run probe, pretrain and replace-ops where that isn't done, enter the folder and open what is searched; ``search`` overrides search_scheme."""
    given = yaml.safe_load(params.read_text(encoding="utf-8")) if params else {}
    sections = {name: dict(given.get(name) or {}) for name in SECTIONS}
    key = hashlib.sha256(json.dumps({n: sections[n] for n in ("task", "pretrain", "replace_ops")}, sort_keys=True).encode()).hexdigest()[:8]
    sections["search_scheme"] |= search
    project = Project(home("search") / key, sections)
    for command in ("probe", "pretrain", "replace-ops"):
        project.run(command)
    os.chdir(project.folder)
    config = load(Path("params.yaml")).config
    task, network, graph = evaluate.open_network(config)
    c = config.search_scheme
    space = scheme_space(graph, c.schemes, c.rates, c.blocks, c.min_share, c.channel_blocks, searched_types(network, graph, c))
    return Prepared(config, task, evaluate.open_candidates(config, task, network, graph), space)


def near_budget(ready: Prepared, evaluator: Any, budget_ms: float, count: int, seed: int, progress: Progress | None = None) -> list[Choices]:
    """``count`` different candidates that take 0.6 to 1.05 times the budget: draws round the mildest uniform candidates within it, as the search's are."""
    space, rng = ready.space.space, np.random.default_rng(seed)
    found: dict[Choices, float] = {}
    ms: dict[Choices, float] = {}

    def measure(wanted: Sequence[Choices]) -> None:
        ms.update({choices: evaluator.latency(choices).ms for choices in wanted if choices not in ms})

    within = climb(space.uniform, lambda c: ms[c] <= budget_ms, measure)
    if not within:
        raise SystemExit("No uniform scheme meets the budget.")
    drawn = focus(space, within)
    while len(found) < count:
        choices = drawn.draw(rng)
        if choices not in found and 0.6 * budget_ms <= (t := evaluator.latency(choices).ms) <= 1.05 * budget_ms:
            found[choices] = t
            (progress or Silent()).say(f"candidate {len(found)}/{count}: {t:.3g} ms, budget {budget_ms:.3g}")
    return list(found)
