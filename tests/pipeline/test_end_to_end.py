"""The whole pipeline as a user runs it: dvc repro on a small network, again, and with another budget. Everything is real: training, search, compiler, timing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["probe", "pretrain", "replace_ops", "search_scheme", "search_pruner", "compile", "bench", "export", "report"]
SMALL = {
    "task": {"model": "npas_tiny", "threads": 1, "image_size": 16},
    "pretrain": {"epochs": 2},
    "replace_ops": {"epochs": 1},
    "search_scheme": {"trials": 5, "initial": 3, "batch": 2, "pool": 10, "epochs": 0.3, "budget_ratio": 0.97, "runs": 5},
    "search_pruner": {"race_epochs": 1, "epochs": 2, "distill": "yes", "algorithms": ["magnitude", "gradual"]},
    "bench": {"runs": 20},
}


class Project:
    """A checkout of its own, with a small configuration."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout.split()
        for name in files or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and not {".venv", ".npas", ".git"} & set(p.parts)]:
            if name.split("/")[0] in ("stages", "npas_cli", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore") and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        params = yaml.safe_load((folder / "params.yaml").read_text())
        for section, values in SMALL.items():
            params[section] |= values
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        self.run("git", "init", "-q", "-b", "main")
        self.run("dvc", "init", "-q")
        self.commit("start")

    def run(self, *command: str, code: int = 0, seconds: float = 600) -> str:
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(self.folder),
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t", "DVC_NO_ANALYTICS": "1",
        }  # fmt: skip
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == code, f"{command} -> {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout + done.stderr

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def json(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text())


def ran(output: str) -> list[str]:
    return [s for s in STAGES if f"Running stage '{s}'" in output]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    project.first = project.run("dvc", "repro")
    project.commit("first")
    return project


def test_every_stage_runs_and_the_artifacts_agree(project):
    assert sorted(ran(project.first)) == sorted(STAGES)
    bench, scheme, trials = project.json("bench/latency.json"), project.json("search_scheme/scheme.json"), project.json("search_scheme/trials.json")
    assert bench["correctness"]["ok"] and len(bench["samples_ms"]) == len(bench["dense"]["samples_ms"]) == 20
    assert len([t for t in trials["trials"] if t["state"] != "failed"]) >= 3
    layers = {x["name"]: x for x in project.json("replace_ops/graph.json")["layers"]}
    assert set(scheme["layers"]) <= {x["module"] for x in layers.values()}
    assert not {"silu", "sigmoid"} & {x["op"] for x in layers.values()}
    page = (project.folder / "report.html").read_text()
    assert "<svg" in page and "chosen, trial" in page and "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_the_zeros_of_the_weights_are_the_schemes(project):
    import torch

    content = torch.load(project.folder / "search_pruner/weights.pt", weights_only=True)
    scheme = project.json("search_scheme/scheme.json")["layers"]
    pruned = [name for name, s in scheme.items() if s["scheme"] != "none"]
    assert pruned
    for name, mask in content["masks"].items():
        assert (content["state_dict"][name][~mask] == 0).all()
    for name in pruned:
        s, weight = scheme[name], content["state_dict"][f"{name}.weight"].flatten(1)
        if s["scheme"] in ("block-punched", "block-based"):
            for group in weight.split(s["block"]):
                assert int((group != 0).any(0).sum()) <= max(1, round(group.shape[1] / s["rate"]))


def test_unchanged_it_runs_the_probe_only(project):
    assert ran(project.run("dvc", "repro")) == ["probe"]


def test_metrics_and_plots_show(project):
    metrics = project.run("dvc", "metrics", "show", "--md")
    assert "bench/metrics.json" in metrics and "search_pruner/metrics.json" in metrics
    project.run("dvc", "plots", "show")
    assert (project.folder / "dvc_plots" / "index.html").exists()


def test_another_budget_runs_the_search_and_what_follows(project):
    output = project.run("dvc", "exp", "run", "-S", "search_scheme.budget_ratio=0.9")
    assert {"search_scheme"} <= set(ran(output)) and not {"pretrain", "replace_ops"} & set(ran(output))
    assert project.json("search_scheme/scheme.json")["config"]["budget_ratio"] == 0.9


def test_a_slow_network_fails_the_build(project):
    output = project.run("npas", "bench", "--fail-above", "0.000001", code=11)
    assert "Error: " in output and "Traceback" not in output
