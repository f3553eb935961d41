"""search-scheme: kill -9 in the middle and the same command again; with recorded evaluations the same scheme, live no finished trial lost or repeated. And an infeasible budget."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages import search_scheme
from stages.artifacts import read_json, save_checkpoint, write_json
from stages.errors import ArtifactError, InfeasibleBudget
from stages.graph import trace
from stages.graph.rewrite import apply_replacements, find_replacements
from stages.params import load
from stages.progress import Silent
from stages.schemes import Scheme
from stages.tasks import make_task

ROOT = Path(__file__).resolve().parents[2]
TINY = ("task.model=npas_tiny", "task.threads=1")
RECORDED = (*TINY, "search_scheme.trials=16", "search_scheme.pool=20")
LIVE = (
    *TINY,
    "search_scheme.trials=6",
    "search_scheme.initial=3",
    "search_scheme.pool=20",
    "search_scheme.schemes=none,block-punched",
    "search_scheme.rates=2,5",
    "search_scheme.blocks=16",
    "search_scheme.train_limit=192",
    "search_scheme.budget_ratio=0.8",
    "search_scheme.runs=10",
)
COMMON = """
import sys
from stages import search_scheme
from stages.params import load
from stages.progress import Silent

class Screen(Silent):
    def advance(self, line=""):
        print(line, flush=True)

    say = advance
"""
TABLE = (
    COMMON
    + """
import hashlib, os, time
from contextlib import contextmanager
from stages.parallel import open_pool
from stages.search import evaluate
from stages.search.early_stop import POINTS
from stages.search.evaluator import Evaluator, Inline, Trained
from stages.search.trials import Timing

def noise(choices):  # a table of every candidate, as fixed as a file
    return int(hashlib.sha256(repr(choices).encode()).hexdigest()[:8], 16) / 16**8

def accuracy(choices):
    return 0.99 - sum(0.002 * (c.rate - 1) for c in choices) - 0.02 * noise(choices)

def latency(choices):
    return Timing(0.1 + sum(1 / c.rate for c in choices) / len(choices) + 0.02 * noise(choices), 1.1, (0.4, 0.5))

def train(choices, rule):
    curve = []
    for point in range(1, POINTS + 1):
        time.sleep(0.005 + 0.01 * noise((point, choices)))  # who finishes first is left to chance
        curve.append((2 * point / POINTS, (1 - accuracy(choices)) * (2 - point / POINTS)))
        if point < POINTS and rule and rule.hopeless([loss for _, loss in curve]):
            return Trained(accuracy(choices) - 0.05, tuple(curve), True)
    return Trained(accuracy(choices), tuple(curve))

def serve():
    if os.environ.get("DIES") and not os.path.exists("died"):
        open("died", "w").close()
        os._exit(1)  # the first worker, at its first candidate
    return lambda request: train(*request)

@contextmanager
def recorded(config, task, network, space, journal, progress):
    journal.note("dense_ms") or journal.note("dense_ms", 1.1)
    budget = 1.1 * config.search_scheme.budget_ratio
    if config.search_scheme.workers == "1":
        yield Evaluator(Inline(train), latency, latency, accuracy), 1.1, budget
    else:
        with open_pool(serve, workers=config.search_scheme.workers) as pool:
            yield Evaluator(pool, latency, latency, accuracy), 1.1, budget

evaluate.open_evaluator = recorded
"""
)
RUN = """
if __name__ == "__main__":
    search_scheme.run(load(None, sys.argv[1:]).config, Screen())
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """replace_ops/model.pt of an untrained npas_tiny, and a device."""
    from stages.devices import open_device

    folder, task = tmp_path_factory.mktemp("inputs"), make_task(load(None, TINY).config.task)
    module = task.model().eval()
    replacements = find_replacements(trace(module, task.example()))
    module = apply_replacements(module, replacements)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        content = {"state_dict": module.state_dict(), "model": "npas_tiny", "replacements": [r.to_json() for r in replacements], "metrics": {}, "config": {}}
        save_checkpoint("replace_ops/model.pt", content)
        write_json("probe/device.json", open_device("host").probe())
    yield folder


def folder_with(inputs: Path, folder: Path, code: str) -> Path:
    shutil.copytree(inputs, folder)
    (folder / "run.py").write_text(code + RUN)
    return folder


def start(folder: Path, sets: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "run.py", *sets], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def finish(folder: Path, sets: tuple[str, ...]) -> list[str]:
    run = start(folder, sets)
    lines, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    return [line for line in lines.splitlines() if line.startswith("trial")]


def kill_after(folder: Path, sets: tuple[str, ...], trials: int) -> None:
    """kill -9 as soon as ``trials`` trials were told on the screen."""
    run = start(folder, sets)
    assert run.stdout is not None
    seen = 0
    while seen < trials:
        line = run.stdout.readline()
        assert line, "ended before it was killed"
        seen += line.startswith("trial")
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()


def journal(folder: Path) -> list[dict]:
    (path,) = (folder / ".npas" / "state" / "search_scheme").glob("*/journal.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def trials_of(records: list[dict]) -> list[dict]:
    return [r for r in records if r["kind"] == "trial"]


def counted(trials: list[dict]) -> int:
    """Without those that were too slow to be trained."""
    return sum(t["accuracy"] is not None or t["state"] == "failed" for t in trials)


def test_killed_and_continued_with_recorded_evaluations_gives_the_same_scheme(inputs, tmp_path):
    undisturbed, killed = folder_with(inputs, tmp_path / "a", TABLE), folder_with(inputs, tmp_path / "b", TABLE)
    total = len(finish(undisturbed, RECORDED))
    assert counted(trials_of(journal(undisturbed))) == 16
    kill_after(killed, RECORDED, 2)
    (path,) = (killed / ".npas" / "state" / "search_scheme").glob("*/journal.jsonl")
    with open(path, "a") as file:
        file.write('{"kind": "trial", "at": [0, 1')  # the kill came in the middle of a line
    kill_after(killed, RECORDED, 7)
    before = len(trials_of(journal(killed)))
    assert before >= 9
    assert len(finish(killed, RECORDED)) == total - before  # no finished trial was run again
    for name in ("scheme.json", "trials.json", "history.csv"):
        assert (killed / "search_scheme" / name).read_bytes() == (undisturbed / "search_scheme" / name).read_bytes()
    found = journal(killed)
    assert len({tuple(r["at"]) for r in trials_of(found)}) == total
    assert sorted(map(str, found)) == sorted(map(str, journal(undisturbed)))  # latencies are measured in a thread: their place among the trials varies
    check_documents(undisturbed)


def test_two_workers_killed_twice_and_one_lost_give_the_scheme_of_one(inputs, tmp_path, monkeypatch):
    sets = (*RECORDED, "search_scheme.trials=30", "search_scheme.strategy=random", "search_scheme.filter_types=keep")
    one, two = folder_with(inputs, tmp_path / "a", TABLE), folder_with(inputs, tmp_path / "b", TABLE)
    finish(one, sets)
    monkeypatch.setenv("DIES", "1")
    sets = (*sets, "search_scheme.workers=2")
    kill_after(two, sets, 3)
    kill_after(two, sets, 6)
    before = len(trials_of(journal(two)))
    assert before >= 9 and (two / "died").exists()
    finish(two, sets)
    assert not processes(two)
    found = trials_of(journal(two))
    assert len({tuple(r["at"]) for r in found}) == len(found) and counted(found) == 30  # none was repeated
    documents = [json.loads((folder / "search_scheme/trials.json").read_text()) for folder in (one, two)]
    assert documents[0]["trials"] == documents[1]["trials"] and documents[0]["ablation"] == documents[1]["ablation"]
    assert any(t["stopped"] for t in documents[0]["trials"])
    assert json.loads((one / "search_scheme/scheme.json").read_text())["layers"] == json.loads((two / "search_scheme/scheme.json").read_text())["layers"]


def check_documents(folder: Path) -> None:
    scheme, trials = json.loads((folder / "search_scheme/scheme.json").read_text()), json.loads((folder / "search_scheme/trials.json").read_text())["trials"]
    metrics = json.loads((folder / "search_scheme/metrics.json").read_text())
    assert set(scheme["inputs"]) == {"replace_ops/model.pt", "probe/device.json"}
    assert scheme["target"] == "host" and scheme["budget"] == {"ms": None, "ratio": 0.5}
    best = max((t for t in trials if t["state"] == "complete"), key=lambda t: (t["accuracy"], -t["latency_ms"]))
    assert metrics["accuracy"] == best["accuracy"] and metrics["latency_ms"] == best["latency_ms"] <= metrics["budget_ms"]
    chosen = Scheme.from_json(scheme)
    assert {name: chosen[name].label for name in best["choices"]} == best["choices"]
    with open(folder / "search_scheme/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["trial"]) for r in rows] == list(range(1, len(trials) + 1)) and float(rows[-1]["best"]) == best["accuracy"]


def processes(folder: Path) -> list[str]:
    """Command lines of the processes whose current directory is ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd") == str(folder) and (path / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append((path / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_killed_live_and_continued_loses_and_repeats_no_trial(inputs, tmp_path):
    folder = folder_with(inputs, tmp_path / "live", COMMON)
    kill_after(folder, LIVE, 3)
    deadline = time.monotonic() + 30
    while processes(folder) and time.monotonic() < deadline:  # the measuring process ends by itself
        time.sleep(0.1)
    assert not processes(folder)
    before = journal(folder)
    done = len(trials_of(before))
    assert 3 <= done < 6
    assert len(finish(folder, LIVE)) == 6 - done
    after = journal(folder)
    assert after[: len(before)] == before
    assert len({tuple(r["at"]) for r in trials_of(after)}) == 6
    assert sum(r["kind"] == "note" and r["name"] == "dense_ms" for r in after) == 1  # the same budget
    document = json.loads((folder / "search_scheme/trials.json").read_text())
    assert not Counter(r["accuracy"] for r in trials_of(before)) - Counter(t["accuracy"] for t in document["trials"])
    assert all(len(t["curve"]) in (6, 8) for t in document["trials"] if t["accuracy"] is not None)  # 192 images are 3 steps an epoch
    assert {row["layer"] for row in document["ablation"]} <= set(document["trials"][0]["choices"]) and all(row["latency_with"] > 0 for row in document["ablation"])
    assert json.loads((folder / "search_scheme/metrics.json").read_text())["latency_ms"] <= document["budget_ms"]
    assert all(t["dense_ms"] > 0 and t["ci95"][0] <= t["latency_ms"] <= t["ci95"][1] for t in document["trials"])


def test_a_budget_out_of_reach_is_told_at_once_with_the_best_reachable(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write_json("search_scheme/scheme.json", {"layers": {}})  # of an earlier search
    with pytest.raises(InfeasibleBudget) as raised:
        search_scheme.run(load(None, [*LIVE, "search_scheme.budget_ms=0.00001"]).config, Silent())
    assert raised.value.best_ms is not None and raised.value.best_ms > 0.00001
    assert not Path("search_scheme/scheme.json").exists()
    assert read_json("search_scheme/trials.json")["trials"] == []
    assert read_json("search_scheme/metrics.json")["fastest_ms"] == raised.value.best_ms


def test_missing_inputs_are_named(project):
    with pytest.raises(ArtifactError, match="device.json"):
        search_scheme.run(load(None, list(LIVE)).config, Silent())


def test_the_integer_program_starts_from_estimates_that_are_measured_once(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    sets = (*LIVE, "search_scheme.warm_start=ilp", "search_scheme.filter_types=keep", "search_scheme.ablate=false")
    search_scheme.run(load(None, [*sets, "search_scheme.trials=4"]).config, Silent())
    first = journal(tmp_path)
    kinds = Counter(r["kind"] for r in first)
    layers = len(next(r for r in first if r["kind"] == "loss")["at"])
    assert kinds["loss"] == 1 + 2 * layers and kinds["layers"] == 3  # dense, and each layer at each of the two rates; all layers together
    dense = next(r["value"] for r in first if r["kind"] == "layers" and not any(r["at"]))
    assert all(ms >= 0 for ms in dense) and 0.5 < sum(dense) / next(r["value"] for r in first if r["kind"] == "note" and r["name"] == "dense_ms") < 2
    search_scheme.run(load(None, [*sets, "search_scheme.trials=5"]).config, Silent())
    assert journal(tmp_path)[: len(first)] == first and Counter(r["kind"] for r in journal(tmp_path))["loss"] == kinds["loss"]
