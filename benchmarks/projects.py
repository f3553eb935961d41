"""A project folder of a benchmark: the real commands, stage by stage, each run once; what is there already isn't repeated, so an interrupted benchmark goes on. Imports nothing of npas.

The folders lie in $NPAS_CACHE (or the user's cache) under benchmarks/; delete one to have its figures taken anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DONE = ".finished"


def home(benchmark: str) -> Path:
    """Where a benchmark keeps its projects."""
    return Path(os.environ.get("NPAS_CACHE") or Path.home() / ".cache" / "npas") / "benchmarks" / benchmark


class Project:
    """One folder with its own params.yaml; ``run`` calls commands in it."""

    def __init__(self, folder: Path, params: Mapping[str, Mapping[str, Any]]):
        self.folder, self.params = folder, params
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.yaml").write_text(yaml.safe_dump({name: dict(section) for name, section in params.items()}, sort_keys=False), encoding="utf-8")

    def take(self, other: Project, folders: Iterable[str]) -> None:
        """Copy finished artifact folders of another project that has the same first stages."""
        for name in folders:
            if not (self.folder / name).exists():
                shutil.copytree(other.folder / name, self.folder / name)

    def run(self, command: str, *sections: str) -> dict[str, Any]:
        """``npas command --json`` unless it has finished with the same ``sections`` (its own by default); its output, which is shown while it runs, ends the benchmark when it fails."""
        name = command.replace("-", "_")
        key = hashlib.sha256(json.dumps([self.params.get(s) for s in ("task", *(sections or (name,)))], sort_keys=True).encode()).hexdigest()
        note = self.folder / name / DONE
        if note.exists() and (found := json.loads(note.read_text(encoding="utf-8")))["key"] == key:
            return dict(found["result"])
        print(f"-- {self.folder.name}: npas {command}", file=sys.stderr, flush=True)
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run([sys.executable, "-m", "npas_cli.app", command, "--json"], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"npas {command} ended with exit code {done.returncode} in {self.folder}.")
        result = json.loads(done.stdout)
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps({"key": key, "result": result}), encoding="utf-8")
        return dict(result)

    def read(self, path: str) -> dict[str, Any]:
        """A JSON artifact."""
        return dict(json.loads((self.folder / path).read_text(encoding="utf-8")))
