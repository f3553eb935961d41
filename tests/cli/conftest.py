"""A command line run in this process, with a stand-in for the stage behind a command."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Install, Result, Run, Stage

from npas_cli.app import main
from stages.config import Config
from stages.progress import Progress


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, project: Path) -> Install:
    """``stage("bench", body)`` puts a stand-in in place of stages/bench.py."""

    def install(section: str, body: Callable[[Config, Progress], Any] | None = None, module: str = "") -> Stage:
        fake = Stage(body)
        dotted = module or f"stages.{section}"
        substitute = types.ModuleType(dotted)
        substitute.run = fake.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, dotted, substitute)
        return fake

    return install


@pytest.fixture
def npas(capsys: pytest.CaptureFixture[str]) -> Run:
    """``npas("bench", "--runs", "20")`` -> Result(code, out, err)."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
