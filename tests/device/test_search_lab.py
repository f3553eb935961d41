"""`npas search-scheme --device adb:...` against AOSP's adbd, ARM code in qemu: a tiny search runs through, over a cable that is cut and on two phones. Emulated: no time is a phone's."""

from __future__ import annotations

import json
import threading
import time

import pytest
from kernel_kit import randomised
from test_compile_stage import checkpoints

from npas_cli.app import main
from stages.artifacts import read_json
from stages.devices import open_device
from stages.params import load
from stages.tasks import make_task

pytestmark = [pytest.mark.adbd, pytest.mark.full]
SETS = ("task.model=npas_tiny", "task.image_size=16", "task.threads=1", "search_scheme.filter_types=keep")
TINY = [word for pair in SETS for word in ("-S", pair)]
SEARCH = ["search-scheme", *TINY, "--trials", "3", "--initial", "2", "--batch", "2", "--pool", "8", "--epochs", "0.1", "--runs", "5", "--budget-ratio", "0.97", "--schemes", "none,block-punched",
          "--rates", "3", "--blocks", "16", "--train-limit", "64", "--no-ablate"]  # fmt: skip


@pytest.fixture()
def ready(project, zig_cache, monkeypatch):
    """A project with a network to search, and zig's own cache."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(zig_cache))
    checkpoints(randomised(make_task(load(None, SETS).config.task).model()))
    return project


def left(phone):
    device = open_device(f"adb:{phone.address}")
    folders = device._held().shell("ls -d /data/local/tmp/npas-* 2>/dev/null")[1].split()
    device.close()
    return folders


def die_at_work(phone):
    """Switch ``phone`` off as soon as it measures."""
    end = time.monotonic() + 120
    while time.monotonic() < end and not any("--runs" in line for line in phone.processes()):
        time.sleep(0.1)
    phone.stop()


def check_documents():
    trials, scheme = read_json("search_scheme/trials.json"), read_json("search_scheme/scheme.json")
    assert sum(t["accuracy"] is not None for t in trials["trials"]) == 3 and not [t for t in trials["trials"] if t["state"] == "failed"]
    assert trials["emulated"] is True
    assert read_json("search_scheme/metrics.json")["latency_ms"] <= trials["budget_ms"]
    return scheme


def test_a_search_over_a_cable_that_is_cut(ready, phone, relay, capsys):
    spec = f"adb:127.0.0.1:{relay.port}"
    assert main(["probe", "--device", spec, "-q"]) == 0
    relay.fault_after(500_000, "cut")  # in the middle of the first executable
    cut = threading.Timer(25, relay.cut)
    cut.start()
    try:
        assert main([*SEARCH, "--device", spec]) == 0
    finally:
        cut.cancel()
    assert relay.passed > 500_000
    assert "EMULATED, not a phone" in capsys.readouterr().err
    assert check_documents()["target"] == spec
    assert left(phone) == []


def test_two_phones_share_the_queue_and_one_dies(ready, start_phone, capsys):
    phones = [start_phone(**{"ro.serialno": name}) for name in "AB"]
    spec = ",".join(f"adb:{phone.address}" for phone in phones)
    assert main(["probe", "--device", spec, "-q"]) == 0
    threading.Thread(target=die_at_work, args=(phones[1],), daemon=True).start()
    assert main([*SEARCH, "--device", spec]) == 0
    assert "go on measuring; training goes on" in capsys.readouterr().err
    check_documents()
    assert left(phones[0]) == []


def test_a_phone_that_was_not_probed_is_refused(ready, phone, capsys):
    assert main(["probe", "-q"]) == 0
    assert main([*SEARCH, "--device", f"adb:{phone.address}", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "tells of another device" in error["message"] and f"npas probe --device adb:{phone.address}" in error["hint"]
