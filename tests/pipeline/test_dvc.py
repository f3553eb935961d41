"""dvc.yaml, params.yaml and the help texts say the same as the code: dependencies cover imports and artifacts, parameters are the dataclasses' fields."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import Any

import import_walk as walk
import pytest
import yaml

from npas_cli.commands import BESIDE, COMMANDS, Command
from npas_cli.options import params_yaml
from stages.artifacts import COLUMNS, SCHEMAS
from stages.config import SECTIONS, TARGETS, Config
from stages.params import load

STAGES: dict[str, Any] = yaml.safe_load((walk.ROOT / "dvc.yaml").read_text())["stages"]
PIPELINE = {name: stage for name, stage in STAGES.items() if "foreach" not in stage}
FOR_EACH_TARGET: dict[str, Any] = STAGES["compile_for"]["do"]
COMPUTE_NOTHING = {"stages/errors.py", "stages/progress.py", "stages/config.py", "stages/__init__.py", "npas_cli/__init__.py"}
BY_STAGE = [pytest.param(command, id=command.section) for command in COMMANDS]


def code_deps(stage: str) -> list[str]:
    return [dep for dep in PIPELINE[stage]["deps"] if dep.split("/")[0] in walk.PACKAGES]


def outs(stage: str, *kinds: str) -> list[str]:
    entries = [entry for kind in kinds or ("outs", "metrics", "plots") for entry in PIPELINE[stage].get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def source(command: Command) -> Path:
    return walk.ROOT / f"{command.entry.replace('.', '/')}.py"


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


def literals(path: Path) -> set[str]:
    return {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("command", BY_STAGE)
def test_dependencies_are_the_imports(command: Command) -> None:
    """Every file that a stage reaches is a dependency, and no dependency is there for nothing."""
    files = {walk.name(path) for path in walk.reached(source(command))} - COMPUTE_NOTHING
    deps = code_deps(command.section)
    missing = sorted(file for file in files if not any(covers(dep, file) for dep in deps))
    idle = [dep for dep in deps if not any(covers(dep, file) for file in files)]
    assert not missing, f"dvc.yaml: deps of {command.section} lack {missing}"
    assert not idle, f"dvc.yaml: {command.section} imports nothing of {idle}"


@pytest.mark.parametrize("command", BY_STAGE)
def test_dependencies_are_the_artifacts_that_the_stage_names(command: Command) -> None:
    known = {*SCHEMAS, *COLUMNS, *(out for stage in PIPELINE for out in outs(stage))}
    named = literals(source(command)) & known
    assert named <= {*PIPELINE[command.section]["deps"], *outs(command.section)}


@pytest.mark.parametrize("command", BY_STAGE)
def test_parameters_are_the_sections_that_the_stage_reads(command: Command) -> None:
    """``config.bench.runs`` in a stage, or in what it imports, needs ``params: [bench]``, else a changed value would re-run nothing."""
    listed = {name.split(".")[0] for name in PIPELINE[command.section]["params"]}
    assert listed <= set(SECTIONS) and sections_read(source(command)) <= listed


def sections_read(start: Path) -> set[str]:
    """Sections named in ``config.<section>``. In stages/tasks ``config`` is the task section itself, so there its fields are not sections."""
    nodes = (node for path in walk.reached(start) if "tasks" not in path.parts for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"} & set(SECTIONS)


def test_every_stage_runs_its_command_without_a_tunable_flag() -> None:
    assert list(PIPELINE) == [command.section for command in COMMANDS]
    for command in COMMANDS:
        assert PIPELINE[command.section]["cmd"] in (f"npas {command.name}", f"npas {command.name} --quiet", "npas compile --target host")
        assert command.section in PIPELINE[command.section]["params"]


def test_further_targets_are_compiled_from_the_same_files() -> None:
    assert STAGES["compile_for"]["foreach"] == "${compile.targets}" and FOR_EACH_TARGET["cmd"] == "npas compile --target ${item}"
    assert FOR_EACH_TARGET["deps"] == PIPELINE["compile"]["deps"] and FOR_EACH_TARGET["params"] == PIPELINE["compile"]["params"]


@pytest.mark.parametrize("command", BY_STAGE)
def test_the_help_text_tells_the_same_files(command: Command) -> None:
    assert set(command.reads) == set(PIPELINE[command.section]["deps"]) - set(code_deps(command.section))
    assert list(command.writes) == outs(command.section)


def test_every_artifact_has_one_maker_that_lies_in_its_folder() -> None:
    made = [out for stage in PIPELINE for out in outs(stage)]
    for target in TARGETS[1:]:
        made += [out.replace("${item}", target) for out in (*FOR_EACH_TARGET["outs"], *(next(iter(m)) for m in FOR_EACH_TARGET["metrics"]))]
    made += [file for command in BESIDE for file in command.writes]
    assert len(set(made)) == len(made) and {*SCHEMAS, *COLUMNS} <= set(made)
    for command in BESIDE:
        assert all(file.split("/")[0] == command.section for file in command.writes)
    for command in COMMANDS:
        assert all(out.split("/")[0] == command.section for out in outs(command.section) if out != "report.html")
        assert set(command.reads) <= set(made)


def test_what_varies_between_runs_feeds_no_training_or_search() -> None:
    """Metrics, curves and trials hold measured times: only the report may depend on them, or an unchanged pipeline would run again."""
    volatile = {out for stage in PIPELINE for out in outs(stage, "metrics", "plots")} | {"search_scheme/trials.json", "bench/latency.json"}
    assert [stage for stage in PIPELINE if set(PIPELINE[stage]["deps"]) & volatile] == ["report"]


def test_the_runcache_stays_on() -> None:
    """DVC switches it off for always_changed, persist, and ordinary outs with cache: false; then "back to the first device" would measure again."""
    for stage, entry in PIPELINE.items():
        assert bool(entry.get("always_changed")) == (stage == "probe")
        assert all(isinstance(out, str) for out in entry.get("outs", []))
        assert all(next(iter(out.values()))["cache"] is False for kind in ("metrics", "plots") for out in entry.get(kind, []))


def test_plots_draw_columns_that_the_tables_have() -> None:
    for stage in PIPELINE:
        for entry in PIPELINE[stage].get("plots", []):
            ((path, options),) = entry.items()
            assert {options["x"], options["y"]} <= set(COLUMNS[path])


def test_params_yaml_holds_every_tunable_and_nothing_else() -> None:
    content = yaml.safe_load((walk.ROOT / "params.yaml").read_text())
    assert {section: set(keys) for section, keys in content.items()} == {section: set(cls.__dataclass_fields__) for section, cls in SECTIONS.items()}


def test_params_yaml_equals_the_defaults_and_is_what_the_generator_prints() -> None:
    assert load(walk.ROOT / "params.yaml").config == Config()
    assert (walk.ROOT / "params.yaml").read_text() == params_yaml(), "run: python -m npas_cli.options > params.yaml"


def test_git_ignores_the_cached_outputs_and_nothing_that_belongs_to_it() -> None:
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=walk.ROOT).returncode == 0

    if subprocess.run(["git", "rev-parse"], cwd=walk.ROOT, capture_output=True).returncode:
        pytest.skip("not a Git checkout")
    cached = [out for stage in PIPELINE for out in outs(stage, "outs")]
    small = [out for stage in PIPELINE for out in outs(stage, "metrics", "plots")]
    assert [path for path in (*cached, ".npas/state/x", ".venv/bin/npas") if not ignored(path)] == []
    assert [
        path
        for path in (*small, "dvc.lock", "dvc.yaml", "params.yaml", ".dvc/config", "stages/compile.py", "stages/probe.py", "stages/devices/probe.py")
        if ignored(path)
    ] == []


def test_compiled_python_never_counts_as_a_changed_dependency() -> None:
    assert "__pycache__" in (walk.ROOT / ".dvcignore").read_text().split()
