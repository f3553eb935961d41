"""npas probe and npas bench as stages, on hand-written networks beside their PyTorch twins: y = factor * x."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import torch
from c_models import MANIFEST, build, c_source
from torch import nn

from stages import bench, probe
from stages.artifacts import read_json, save_checkpoint
from stages.config import Config
from stages.errors import ArtifactError, InvalidMeasurement, RunnerCrashed, TooSlow, UsageError, WrongOutput
from stages.progress import Silent
from stages.tasks import Task

COMPILED = MANIFEST | {"target": {"triple": "here", "mcpu": "native", "threads": 1}, "tvm": "0.27", "macs": 4}
FACTORS = {"model": 2.0, "dense": 3.0, "original": 4.0}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.factor * x


class ScaleTask(Task):
    def __init__(self, config) -> None:
        pass

    def model(self):
        return Scale()

    def example(self, batch=1):
        return torch.zeros(batch, 4)

    def size(self, split):
        return {"val": 10, "test": 20}[split]


for _name in ("batches", "steps", "inputs", "loss", "distill_loss", "evaluate"):
    setattr(ScaleTask, _name, lambda self: None)


def compiled(folder, name, factor=None, ms=0.1, **parts):
    (folder / "compile/host").mkdir(parents=True, exist_ok=True)
    build(folder / "compile/host", name, c_source(FACTORS[name] if factor is None else factor, ms=ms, manifest=COMPILED, **parts))


@pytest.fixture()
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, factor in zip(bench.CHECKPOINTS, FACTORS.values(), strict=True):
        save_checkpoint(path, {"state_dict": {"factor": torch.tensor(factor)}, "replacements": []})
    for name, ms in (("model", 0.1), ("dense", 0.3), ("original", 0.4)):
        compiled(tmp_path, name, ms=ms)
    (tmp_path / "search_scheme").mkdir()
    (tmp_path / "search_scheme/scheme.json").write_text("{}")
    probe.run(Config(), Silent())
    return tmp_path


def configured(**changes):
    base = Config()
    changes = {"runs": 10, "warmup": 0} | changes
    return dataclasses.replace(base, task=dataclasses.replace(base.task, task=f"{__name__}:ScaleTask"), bench=dataclasses.replace(base.bench, **changes))


def test_bench_writes_its_three_files(project):
    record = bench.run(configured(), Silent(), {"bench.runs": 10})
    saved = read_json("bench/latency.json")
    assert saved == json.loads(json.dumps(record))
    assert len(saved["samples_ms"]) == len(saved["dense"]["samples_ms"]) == len(saved["original"]["samples_ms"]) == 10
    assert min(saved["samples_ms"]) >= 0.1
    assert min(saved["dense"]["samples_ms"]) >= 0.3
    assert saved["schema"] == record["schema"] == "npas-bench/1"
    assert saved["task"] == {"metric": "metric", "samples": {"val": 10, "test": 20}}
    assert saved["overrides"] == {"bench.runs": 10}
    assert saved["device"]["fingerprint"] == read_json("probe/device.json")["fingerprint"]
    assert read_json("bench/metrics.json")["latency_ms"] == saved["stats"]["median"]
    with open("bench/layers.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["layer"], r["kernel"]) for r in rows] == [("scale", "multiply"), ("head", "copy")]
    assert float(rows[1]["ms"]) == float(rows[1]["dense_ms"]) == 0.5


@pytest.mark.parametrize("name", ["model", "dense", "original"])
def test_a_wrong_network_is_never_timed(project, name):
    compiled(project, name, factor=7.0)
    with pytest.raises(WrongOutput, match={"model": "pruned"}.get(name, name)):
        bench.run(configured(), Silent())
    assert not (project / "bench").exists()


def test_too_slow_is_told_after_saving(project):
    with pytest.raises(TooSlow):
        bench.run(configured(fail_above=0.05), Silent())
    assert read_json("bench/latency.json")["stats"]["median"] > 0.05
    bench.run(configured(fail_above=1000.0), Silent())


def test_invalid_is_told_after_saving(project):
    compiled(project, "dense", ms=0.3, after="if (calls > 40) y[0] += 1;")
    with pytest.raises(InvalidMeasurement, match="outputs changed"):
        bench.run(configured(runs=60), Silent())
    assert read_json("bench/latency.json")["valid"] is False


def test_missing_parts_are_named(project):
    (project / "compile/host/dense.so").unlink()
    with pytest.raises(ArtifactError, match="compile/host/dense.so does not exist"):
        bench.run(configured(), Silent())
    (project / "probe/device.json").unlink()
    with pytest.raises(ArtifactError, match="probe/device.json does not exist"):
        bench.run(configured(), Silent())
    (project / "search_pruner/weights.pt").unlink()
    with pytest.raises(ArtifactError, match="search_pruner/weights.pt does not exist"):
        bench.run(configured(), Silent())


def test_a_crash_leaves_no_record(project):
    compiled(project, "model", body="raise(SIGILL);")
    with pytest.raises(RunnerCrashed, match="SIGILL"):
        bench.run(configured(), Silent())
    assert not (project / "bench").exists()


def test_another_device_is_refused(project):
    document = read_json("probe/device.json") | {"fingerprint": "0" * 64, "soc": "a faster one"}
    (project / "probe/device.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="another device .*a faster one"):
        bench.run(configured(), Silent())


def test_probe_writes_the_same_bytes_again(project):
    before = (project / "probe/device.json").read_bytes()
    probe.run(Config(), Silent())
    assert (project / "probe/device.json").read_bytes() == before
