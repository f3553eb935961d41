"""Virtual environments for engines, made at first use in $XDG_CACHE_HOME/npas/engines and kept until their requirements change."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from benchmarks.peers.catalog import Environment


class Unavailable(Exception):
    """Why an engine can't be timed here; what the table says in its place."""


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/npas/engines, or ~/.cache/npas/engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npas" / "engines"


def interpreter(name: str, environment: Environment, cache: Path, log: Path) -> Path:
    """The Python of the environment ``name``, installed if it isn't yet. Raises Unavailable with the reason; pip's output goes to ``log``."""
    folder = cache / name
    stamp, python = folder / "installed.json", folder / "bin" / "python"
    wanted = json.dumps(dataclasses.asdict(environment), sort_keys=True)
    with _only_one(cache / f"{name}.lock"):
        if stamp.exists() and stamp.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        with log.open("a") as output:
            _run([sys.executable, "-m", "venv", str(folder)], output)
            _run([str(python), "-m", "pip", "install", "--quiet", *environment.requirements], output)
            if environment.alone:
                _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *environment.alone], output)
        stamp.write_text(wanted)
    return python


def _run(command: list[str], log: IO[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print("$", *command, file=log)
    print(done.stdout, file=log)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        raise Unavailable(f"not installed: {errors[-1].removeprefix('ERROR: ') if errors else ' '.join(command[1:4]) + ' failed'}")


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Two runs of the benchmark must not install into one folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
