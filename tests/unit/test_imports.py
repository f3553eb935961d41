"""The import direction of the house: what may know what. A new file that breaks it fails here, with its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import import_walk as walk
import pytest

BASE = ("errors", "progress", "config", "params", "artifacts")
MAY_IMPORT = {  # part of stages/ -> the parts that it may import, beside itself
    "errors": (),
    "progress": (),
    "config": (),
    "params": ("errors", "config"),
    "artifacts": ("errors", "config"),
    "parallel": ("errors",),
    "graph": BASE,
    "schemes": (*BASE, "graph"),
    "tasks": (*BASE, "graph", "schemes"),
    "devices": BASE,
    "compiler": (*BASE, "graph", "schemes", "devices"),
    "pruners": (*BASE, "graph", "schemes", "tasks", "parallel"),
    "lifelong": (*BASE, "graph", "schemes", "tasks", "pruners"),
    "search": (*BASE, "graph", "schemes", "parallel"),
}
EVALUATE = (*MAY_IMPORT["search"], "tasks", "devices", "compiler", "pruners")
JOINING = {f"stages/search/{name}.py" for name in ("evaluate", "accuracy", "latency", "network")}  # the rest of search/ takes them as callables
STAGES = ("probe", "pretrain", "replace_ops", "search_scheme", "search_pruner", "compile", "bench", "export", "learn_task")
HEAVY = {"torch", "torchvision", "tvm", "skopt", "sklearn", "scipy", "dvc", "pandas", "matplotlib"}


def part(path: Path) -> str:
    """stages/graph/layer.py -> "graph"; stages/errors.py -> "errors"; npas_cli/ui.py -> "npas_cli"."""
    parts = path.relative_to(walk.ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "stages" else parts[0]


def allowed(path: Path) -> tuple[str, ...]:
    if walk.name(path) in JOINING:
        return EVALUATE
    if part(path) == "bench":  # compiles what is missing for a phone
        return (*MAY_IMPORT, "compile")
    if part(path) in STAGES:
        return tuple(MAY_IMPORT)
    if part(path) == "npas_cli":
        return ("npas_cli", *BASE) if path.name == "report.py" else ("npas_cli", *MAY_IMPORT, *STAGES)
    return MAY_IMPORT[part(path)]


@pytest.mark.parametrize("path", [path for path in walk.sources() if walk.name(path) != "stages/__init__.py"], ids=walk.name)
def test_imports_point_one_way(path: Path) -> None:
    reached = {part(file) for file in walk.imports(path) if file != walk.ROOT / "stages/__init__.py"} - {part(path)}
    assert reached <= set(allowed(path)), f"{walk.name(path)} may not import {sorted(reached - set(allowed(path)))}"


def test_search_evaluates_only_from_its_loop_or_stage() -> None:
    """Search takes accuracy and latency as callables: none of its other files knows the one that joins training, compiler and device."""
    evaluate = walk.ROOT / "stages/search/evaluate.py"
    assert not [walk.name(path) for path in walk.sources() if part(path) == "search" and path != evaluate and evaluate in walk.imports(path)]


def test_only_the_vision_task_imports_torchvision_itself() -> None:
    users = {walk.name(path) for path in walk.sources() if any(module.split(".")[0] == "torchvision" for module in walk.imported_modules(path))}
    assert users <= {"stages/tasks/vision.py"}


@pytest.mark.parametrize("path", [walk.ROOT / f"stages/{stem}.py" for stem in (*BASE, *STAGES)] + sorted((walk.ROOT / "npas_cli").glob("*.py")), ids=walk.name)
def test_light_files_import_nothing_heavy(path: Path) -> None:
    """The command line imports these before it knows what to do, so `npas --help` stays quick."""
    code = f"import sys, importlib; importlib.import_module({walk.module(path)!r}); print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & HEAVY


def test_the_walker_sees_imports_in_functions_relative_ones_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "ROOT", tmp_path)
    package = tmp_path / "stages" / "graph"
    package.mkdir(parents=True)
    for file in (tmp_path / "stages" / "__init__.py", package / "__init__.py", package / "layer.py", package / "trace.py", package / "rules.py"):
        file.write_text("")
    (package / "trace.py").write_text("import os\ndef f():\n    from stages.graph import layer\n    from .rules import x\n")
    assert {walk.name(file) for file in walk.imports(package / "trace.py")} == {"stages/__init__.py", "stages/graph/__init__.py", "stages/graph/layer.py", "stages/graph/rules.py"}
