"""The CI definitions: well-formed, and every command and flag of npas in them exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from npas_cli.app import main

ROOT = Path(__file__).resolve().parents[2]
GITHUB: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/phone-bench.yml").read_text())
GITLAB: dict[str, Any] = yaml.safe_load((ROOT / "docs/gitlab-phone-bench.yml").read_text())
STEPS: list[dict[str, Any]] = GITHUB["jobs"]["bench"]["steps"]
SCRIPTS = {"github": "\n".join(step["run"] for step in STEPS if "run" in step), "gitlab": "\n".join(GITLAB["phone-bench"]["script"])}


def test_the_workflow_has_only_keys_that_github_knows() -> None:
    assert set(GITHUB) == {"name", True, "concurrency", "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    job = GITHUB["jobs"]["bench"]
    assert set(job) <= {"if", "runs-on", "timeout-minutes", "env", "steps"}
    for step in STEPS:
        assert set(step) <= {"name", "if", "uses", "with", "run", "env"} and ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"actions/[\w/-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_no_expression_reaches_a_shell() -> None:
    """What a pull request may choose must come as an environment variable, never as text of the script."""
    assert "${{" not in SCRIPTS["github"]
    assert "head.repo.full_name == github.repository" in GITHUB["jobs"]["bench"]["if"]


def test_the_gitlab_job_has_only_keys_that_gitlab_knows() -> None:
    (job,) = GITLAB.values()
    assert set(job) <= {"tags", "resource_group", "timeout", "rules", "variables", "cache", "script", "artifacts"}
    assert job["artifacts"]["reports"] == {"junit": "junit.xml"}


@pytest.mark.parametrize("where", SCRIPTS)
def test_the_commands_exist(where: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``npas bench ... --save-params --show-config`` sets what ``dvc repro bench`` then measures."""
    (line,) = re.findall(r"npas (bench .*)", SCRIPTS[where])
    words = [{"$DEVICE": "adb:A", "$baseline": "null", "$GITHUB_RUN_NUMBER": "7", "$CI_PIPELINE_IID": "7"}.get(word, word) for word in shlex.split(line)]
    (project / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert main(words) == 0
    bench = yaml.safe_load((project / "params.yaml").read_text())["bench"]
    assert bench["devices"] == ["adb:A"] and bench["junit"] == "junit.xml" and bench["baseline"] is None and bench["session"] == 7
    assert "dvc repro bench" in SCRIPTS[where]
