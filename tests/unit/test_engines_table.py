"""benchmarks/engines.py without any engine: statistics, tables, the protocol of a worker, and what becomes of workers that fail."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from benchmarks.peers.catalog import ENGINES, ENVIRONMENTS, Engine
from benchmarks.peers.client import Worker
from benchmarks.peers.contest import Entry, contest
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.job import Job
from benchmarks.peers.table import Report, ratios, statistics_of
from benchmarks.peers.worker import reason, relative_error

BEHAVIOURS = """
import os, sys, time
import benchmarks.peers.worker as worker
from benchmarks.peers.job import Job, Session
import numpy as np

class adapter:
    def load(job):
        print("noise on standard output")
        os.system("echo noise of a child")
        if job.network == "broken":
            raise RuntimeError("first line\\nno such operator")
        steps = []
        def step():
            steps.append(1)
            if job.network == "crashing" and len(steps) > 5:
                os.abort()
        return Session(step, lambda: job.expected() * (2 if job.network == "wrong" else 1), "1.0", "a note")

worker.importlib.import_module = lambda name: adapter
sys.exit(worker.main())
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts a worker whose engine behaves as it is called."""
    np.save(tmp_path / "input.npy", np.ones((1, 3, 2, 2), np.float32))
    np.save(tmp_path / "output.npy", np.arange(10, dtype=np.float32)[None])
    script = tmp_path / "fake.py"
    script.write_text(BEHAVIOURS)

    def started(behaviour: str) -> Worker:
        job = Job("fake", behaviour, 0, str(tmp_path), str(tmp_path / "none"))
        return Worker(sys.executable, job, str(min(os.sched_getaffinity(0))), tmp_path / f"{behaviour}.log", command=(str(script),))

    return started


def entry(name: str, wall: list[float], **more: object) -> Entry:
    return Entry(name, {"version": "1.0", "note": ""}, wall_ms=wall, cpu_ms=wall, **more)  # type: ignore[arg-type]


def test_worker_answers_with_as_many_times_as_were_asked_for_and_keeps_noise_out(start, tmp_path):
    worker = start("good")
    try:
        facts = worker.ready()
        assert (facts["version"], facts["note"], facts["relative_error"]) == ("1.0", "a note", 0.0)
        answer = worker.run(4)
        assert len(answer["wall_ms"]) == len(answer["cpu_ms"]) == 4
        assert answer["idle_ms"] >= 0 and answer["total_cpu_ms"] > 0
    finally:
        worker.close()
    assert worker._process.returncode == 0
    assert "noise of a child" in (tmp_path / "good.log").read_text()


def test_a_contest_reports_the_failing_and_times_the_others(start):
    names = ["good", "broken", "wrong", "crashing"]
    entries, others = contest({name: partial(start, name) for name in names}, rounds=3, runs=2, say=lambda text: None)
    assert {name: len(entries[name].wall_ms) for name in names} == {"good": 6, "broken": 0, "wrong": 0, "crashing": 2}
    assert not entries["good"].failed
    assert entries["broken"].failed == "RuntimeError: no such operator"
    assert entries["wrong"].failed.startswith("computes something else than PyTorch: relative error 1")
    assert entries["crashing"].failed == "died of signal 6"
    assert others >= 0


def test_no_worker_outlives_an_interrupted_contest(start):
    begun = []

    def starting() -> Worker:
        begun.append(start("good"))
        return begun[-1]

    def interrupt(text: str) -> None:
        if text.startswith("round"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contest({"good": starting}, rounds=1, runs=1, say=interrupt)
    assert begun[0]._process.poll() is not None


def test_a_worker_ends_with_its_parent(start):
    worker = start("good")
    worker.ready()
    worker._process.stdin.close()
    assert worker._process.wait(10) == 0
    with pytest.raises(Unavailable):
        worker._answer(1.0)
    worker._process.stdout.close()


def test_a_silent_worker_is_given_up(start):
    worker = start("good")
    worker.ready()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no answer within 0.2 s"):
        worker._answer(0.2)
    assert time.monotonic() - began < 5
    worker.kill()


def test_statistics_and_ratios_by_hand():
    rows = {
        "a": statistics_of(entry("a", [4.0, 2.0, 6.0])),
        "b": statistics_of(entry("b", [5.0, 1.0, 9.0])),
        "npas": statistics_of(entry("npas", [2.0, 3.0, 8.0])),
        "dead": statistics_of(entry("dead", [0.1], failed="died of signal 6")),
    }
    assert (rows["a"]["median_ms"], rows["a"]["min_ms"], rows["a"]["runs"]) == (4.0, 2.0, 3)
    assert ratios(rows, "npas") == {"best": "a", "median": 3 / 4, "min": 2 / 1, "cpu_median": 3 / 4, "cpu_min": 2 / 1}
    assert ratios(rows, "npas-pruned") == {}
    assert ratios({"npas": rows["npas"]}, "npas") == {}


def test_tables_show_wins_losses_and_reasons():
    engines = (
        Engine("a", "A", "a", ""),
        Engine("b", "B", "b", ""),
        Engine("npas", "npas, dense", "npas", ""),
        Engine("npas-pruned", "npas, pruned", "npas", "", pruned=True),
    )
    report = Report({"processor": "P", "cores": 2, "rounds": 3, "runs": 1}, engines, {"vgg16": 8.2, "resnet18": 5.3})
    missing = Entry("b", failed="not installed: no wheel")
    report.add(1, "vgg16", {"a": entry("a", [100.0]), "b": missing, "npas": entry("npas", [50.0]), "npas-pruned": entry("npas-pruned", [25.0])}, 0.0)
    report.add(1, "resnet18", {"a": entry("a", [2.0]), "b": missing, "npas": entry("npas", [3.0]), "npas-pruned": Entry("npas-pruned", failed="boom")}, 0.8)
    text = report.markdown()
    assert "| engine | vgg16 | resnet18 |" in text
    assert "| A 1.0 | **100.0** | **2.00** |" in text
    assert "| B | not installed | not installed |" in text
    assert "| npas dense / best engine (medians) | 0.50 | 1.50 |" in text
    assert "| npas pruned / best engine (medians) | 0.25 | – |" in text
    assert "| pruning rate | 8.2x | 5.3x |" in text
    assert "- B: not installed: no wheel (vgg16 on 1, resnet18 on 1)." in text
    assert "other processes used 0.8 cores (resnet18)" in text
    assert "### 1 thread, CPU time" in text  # because of those
    kept = json.loads(report.json())
    assert kept["npas_over_best"]["1"]["resnet18"]["npas"]["median"] == 1.5
    assert kept["results"]["1"]["resnet18"]["npas-pruned"]["failed"] == "boom"


def test_the_comparison_sees_nan_and_missing_outputs():
    expected = np.array([1.0, -4.0])
    assert relative_error(np.array([1.0, -3.0]), expected) == 0.25
    assert not relative_error(np.array([np.nan, -4.0]), expected) <= 1e-3
    with pytest.raises(ValueError, match="3 outputs"):
        relative_error(np.zeros(3), expected)
    assert reason(ValueError()) == "ValueError"


def test_the_catalogue_is_consistent():
    names = [engine.name for engine in ENGINES]
    assert len(set(names)) == len(names)
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "adapters"
    for engine in ENGINES:
        assert engine.environment in {"", *ENVIRONMENTS}
        text = (folder / f"{engine.adapter}.py").read_text()
        assert "def load(job: Job)" in text and engine.converts == ("def convert(job: Job)" in text)
    for environment in ENVIRONMENTS.values():
        assert all("==" in requirement for requirement in environment.requirements + environment.alone)


def test_a_job_survives_its_line():
    job = Job("ncnn", "vgg16", 0, "/a", "/b", 2, 8.2)
    assert Job.parse(job.dump()) == job and "\n" not in job.dump()
