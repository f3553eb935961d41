"""`npas bench --device host,adb:...` on a compiled network against the lab: compiled when missing, equal to PyTorch, both records in one file. Emulated: no time is a phone's."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from kernel_kit import randomised
from test_compile_stage import checkpoints

from npas_cli.app import main
from stages.artifacts import read_json
from stages.params import load
from stages.tasks import make_task

pytestmark = [pytest.mark.adbd, pytest.mark.full]
SMALL = ["-S", "task.model=npas_tiny", "--runs", "12", "--warmup", "2"]


@pytest.fixture()
def ready(project, zig_cache, monkeypatch):
    """A project whose networks are trained and compiled for this machine."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(zig_cache))
    checkpoints(randomised(make_task(load(None, ["task.model=npas_tiny"]).config.task).model()))
    assert main(["probe", "-q"]) == 0
    assert main(["compile", "-q", "-S", "task.model=npas_tiny"]) == 0
    return project


def test_this_machine_and_a_phone(ready, phone, capsys):
    devices = ["--device", f"host,adb:{phone.address}"]
    assert main(["bench", *SMALL, *devices, "--junit", "junit.xml", "--json"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record == read_json("bench/latency.json")
    (other,) = record["others"]
    assert record["device"]["kind"] == "host" and other["device"]["kind"] == "phone"
    assert other["device"]["emulated"] is True and "EMULATED, not a phone" in printed.err
    assert "compiling it from search_pruner/weights.pt" in printed.err
    for made in (record, other):
        assert len(made["samples_ms"]) == len(made["dense"]["samples_ms"]) == len(made["original"]["samples_ms"]) == 12
        assert 0 < made["correctness"]["max_abs_err"] <= made["correctness"]["tolerance"] * made["correctness"]["max_abs_output"]
        assert all(row["ms"] is None or row["ms"] > 0 for row in made["layers"])
    assert [suite.get("name") for suite in ElementTree.parse("junit.xml").getroot()] == ["host", f"adb:{phone.address}"]
    assert list(read_json("bench/metrics.json")["others"]) == [f"adb:{phone.address}"]

    assert main(["bench", *SMALL, "--device", f"adb:{phone.address}", "--baseline", "bench/latency.json", "--margin", "9", "--json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["baseline"]["slower"] is False
    assert "compiling it" not in again.err  # it was made of the same weights
    assert main(["bench", *SMALL, "--device", f"adb:{phone.address}", "--fail-above", "0.000001", "-q"]) == 11
    assert read_json("bench/latency.json")["device"]["kind"] == "phone"


def test_a_phone_that_is_not_there(ready):
    assert main(["bench", *SMALL, "--device", "adb:127.0.0.1:1", "--junit", "junit.xml", "-q"]) == 4
    root = ElementTree.parse("junit.xml").getroot()
    assert root[0].get("errors") == "1" and root[0].get("skipped") == "2"
