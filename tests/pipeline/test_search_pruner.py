"""The search-pruner stage on the tiny network: what it writes, kill -9 in the middle, and bad inputs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stages import search_pruner
from stages.artifacts import load_checkpoint, read_json, save_checkpoint, sha256, write_json
from stages.config import Config
from stages.errors import ArtifactError, UsageError
from stages.graph import trace
from stages.graph.rewrite import apply_replacements, find_replacements
from stages.params import load
from stages.progress import Silent
from stages.schemes import LayerScheme, Scheme, check_zeros, uniform_scheme
from stages.tasks import fit, load_network, make_task

ROOT = Path(__file__).resolve().parents[2]
SETS = (
    "task.model=npas_tiny",
    "task.image_size=16",
    "task.threads=1",
    "task.train_limit=256",
    "search_pruner.algorithms=magnitude,gradual",
    "search_pruner.race_epochs=1",
    "search_pruner.race_eta=2",
    "search_pruner.epochs=3",
)
ENTRIES = ["magnitude", "magnitude+distill", "gradual", "gradual+distill"]
OUTPUTS = ("weights.pt", "race.json", "metrics.json", "race.csv", "history.csv")
SCRIPT = f"""
import sys
from stages import search_pruner
from stages.params import load
from stages.progress import Silent
class Screen(Silent):
    def say(self, line): print(line, flush=True)
    def advance(self, line=""): print(line, flush=True)
if __name__ == "__main__":
    search_pruner.run(load(None, [*{SETS!r}, "search_pruner.workers=" + sys.argv[1]]).config, Screen())
"""


def config(*more: str) -> Config:
    return load(None, [*SETS, *more]).config


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A replaced and briefly trained network, and a scheme of every kind for it."""
    folder, task = tmp_path_factory.mktemp("inputs"), make_task(config().task)
    module = task.model().eval()
    replacements = find_replacements(trace(module, task.example()))
    module = apply_replacements(module, replacements)
    fit(module, task, epochs=3, lr=0.004, evaluate=False)
    graph = trace(module, task.example())
    filters = uniform_scheme(graph, "filter", 2.0)
    layers = dict(uniform_scheme(graph, "block-punched", 3.0).layers) | {"head.0": filters["head.0"], "stem.0": LayerScheme("keep", "pattern", 4.5, 8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        content = {"state_dict": module.state_dict(), "model": "npas_tiny", "replacements": [r.to_json() for r in replacements], "metrics": {}, "config": {}}
        save_checkpoint("replace_ops/model.pt", content)
        save_checkpoint("search_scheme/network.pt", content | {"filter_types": {}})
        write_json("search_scheme/scheme.json", Scheme(layers, filters.coupled).to_json())
    yield folder


@pytest.fixture
def project(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the inputs, which is the current one."""
    for name in ("replace_ops/model.pt", "search_scheme/network.pt", "search_scheme/scheme.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((inputs / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPAS_STATE", str(tmp_path / "state"))
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_it_writes_the_pruned_network_and_all_that_led_to_it(project: Path) -> None:
    told = Told()
    metrics = search_pruner.run(config(), told, overrides={"search_pruner.epochs": 3})
    content, scheme = load_checkpoint("search_pruner/weights.pt"), Scheme.from_json(read_json("search_scheme/scheme.json"))
    check_zeros(content["state_dict"], scheme, content["masks"])
    assert content["scheme_sha256"] == sha256("search_scheme/scheme.json") and content["overrides"] == {"search_pruner.epochs": 3}
    assert [s["entry"] for s in content["scores"]] == ENTRIES == [row["entry"] for row in table(project / "search_pruner/race.csv")]
    saved, rungs = read_json("search_pruner/metrics.json"), read_json("search_pruner/race.json")["rungs"]
    assert [(rung["epochs"], len(rung["race"]), {len(curve) for curve in rung["curves"].values()}) for rung in rungs] == [(1, 4, {1}), (2, 2, {2})]
    assert metrics.items() <= saved.items() and saved["race"] == rungs[0]["race"] | rungs[1]["race"]
    assert saved["winner"] == max(rungs[1]["race"], key=lambda name: rungs[1]["race"][name])
    assert [int(row["epoch"]) for row in table(project / "search_pruner/history.csv")] == [1, 2, 3]
    task = make_task(config().task)
    network = load_network("search_pruner/weights.pt", task)  # the replacements travel along
    for split in ("val", "test"):
        assert task.evaluate(network, split) == pytest.approx(metrics["accuracy"]["pruned"][split])
        assert task.evaluate(load_network("replace_ops/model.pt", task), split) == pytest.approx(metrics["accuracy"]["dense"][split])
    zeros = sum(int((~mask).sum()) for mask in content["masks"].values())
    assert metrics["weights"] - metrics["kept_weights"] == zeros and metrics["sparsity"] == pytest.approx(zeros / sum(p.numel() for p in network.parameters()))
    assert [line.split("  top1")[0] for line in told.lines[:2]] == ["race of 1 epochs 1/4  magnitude", "race of 1 epochs 2/4  magnitude + distillation"]
    assert not list((project / "state").rglob("*.pt"))


def run_until(project: Path, line: str, workers: int = 1) -> list[str]:
    """Run the stage in a process of its own and kill -9 it when it prints ``line``."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "NPAS_STATE": str(project / "state"), "OMP_NUM_THREADS": "1"}
    (project / "stage.py").write_text(SCRIPT)
    with subprocess.Popen([sys.executable, "-W", "ignore", "stage.py", str(workers)], cwd=project, env=env, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        assert process.stdout is not None
        for said in process.stdout:
            lines.append(said.rstrip())
            if line and said.startswith(line):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == (-signal.SIGKILL if line else 0)
    return lines


def test_killed_in_the_race_and_in_the_last_run_it_ends_as_if_undisturbed(project: Path) -> None:
    assert not (project / "search_pruner").exists()
    run_until(project, "race of 1 epochs 2/4", workers=2)
    second = run_until(project, "epoch 1/3")  # the winner's first epoch is saved
    assert sum("(earlier run)" in line for line in second) >= 1
    last = run_until(project, "")
    assert sum("(earlier run)" in line for line in last) == 4 + 2 + 1 and sum(line.startswith("epoch 3/3") for line in last) == 1
    resumed = {name: (project / "search_pruner" / name).read_bytes() for name in OUTPUTS[1:]}
    weights = load_checkpoint("search_pruner/weights.pt")
    for path in (project / "state").rglob("*.jsonl"):
        path.unlink()
    search_pruner.run(config(), Silent())
    assert resumed == {name: (project / "search_pruner" / name).read_bytes() for name in OUTPUTS[1:]}
    again = load_checkpoint("search_pruner/weights.pt")
    assert weights["scores"] == again["scores"] and all(torch.equal(weights["state_dict"][name], again["state_dict"][name]) for name in weights["state_dict"])


def test_a_scheme_of_another_network_names_the_layer(project: Path) -> None:
    write_json("search_scheme/scheme.json", Scheme({"features.0.0": LayerScheme("keep", "block-punched", 2.0, 8)}).to_json())
    with pytest.raises(UsageError, match="features.0.0"):
        search_pruner.run(config(), Silent())
    assert not (project / "search_pruner").exists()


def test_a_missing_scheme_tells_how_to_make_it(project: Path) -> None:
    (project / "search_scheme/scheme.json").unlink()
    with pytest.raises(ArtifactError, match="does not exist") as caught:
        search_pruner.run(config(), Silent())
    assert "npas search-scheme" in caught.value.hint
