"""The search's latencies from phones that are folders of this machine: what is measured, heat, lost links, two phones on one queue, and devices that the project wasn't probed on."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from c_models import c_source
from phone_kit import FolderPhone, Heard, linked
from torch import nn

from stages.config import Config
from stages.devices import known
from stages.errors import DeviceHot, DeviceNotFound, UsageError, WrongOutput
from stages.graph import trace
from stages.progress import Silent
from stages.schemes import LayerScheme, Scheme
from stages.search import Space, latency, make_sampler
from stages.search.evaluator import Evaluator, Inline, Rules, Trained
from stages.search.loop import search
from stages.search.measuring import READY, Measurers
from stages.search.trials import Journal, Timing

HOT = "cat <<'E'\nThermal Status: 2\nHAL Ready: true\nE"
RULES = Rules(budget_ms=1.0, trials=3, batch=2)


class Twice(nn.Module):
    """Four filters of 1 x 1: y = 2 x, whatever of it is pruned away afterwards."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.scale.weight, 2.0)

    def forward(self, x):
        return self.scale(x.reshape(4, 1, 1, 1)).reshape(1, 4)


class Example:
    def example(self):
        return torch.tensor([[1.0, -2.0, 0.5, 8.0]])


@pytest.fixture()
def phones(tmp_path, monkeypatch):
    """Phones A and B, and a compiler for them: a pruned candidate takes 0.3 ms, the dense network 1 ms; both compute 2 x."""
    found = {f"adb:{name}": FolderPhone(tmp_path / name, name) for name in "AB"}
    made = {False: c_source(2.0, ms=1.0), True: c_source(2.0, ms=0.3)}
    network = Twice().eval()
    monkeypatch.setattr(latency, "open_network", lambda config: (Example(), network, trace(network, Example().example())))
    monkeypatch.setattr(latency, "compile_model", lambda module, example, scheme, *rest, **more: made[bool(scheme.layers)])
    monkeypatch.setattr(latency, "save_together", lambda networks, folder: linked(folder, **networks))
    monkeypatch.setattr(latency, "prune_", lambda module, scheme: None)
    monkeypatch.setattr(latency, "REFERENCE_RUNS", 10)
    for module in (latency, known):
        monkeypatch.setattr(module, "open_device", lambda spec, *rest, **more: found[spec].device())
    found["made"] = made
    return found


class Here:
    """search.worker.Worker without a process."""

    def __init__(self, spec, device="adb:A"):
        self.call = latency.serve_latency(dataclasses.replace(Config(), probe=dataclasses.replace(Config().probe, device=device)), spec)

    def close(self):
        pass


PRUNED = Scheme({"scale": LayerScheme("keep", "filter", 2.0)})


def test_a_candidate_beside_the_dense_network(phones):
    phone = Here("adb:A")
    assert phone.call(None) >= 1.0
    ratio, low, high, dense_ms = phone.call((PRUNED, 10, 5.0))
    assert 0 < low <= ratio <= high and ratio < 1 and dense_ms >= 1.0
    assert phones["adb:A"].jobs() == []


def test_a_candidate_that_computes_something_else_is_never_timed(phones):
    phone = Here("adb:A")
    phones["made"][True] = c_source(3.0)
    with pytest.raises(WrongOutput, match="candidate"):
        phone.call((PRUNED, 10, 5.0))


def test_heat_is_told_at_once(phones):
    phone = Here("adb:A")
    phones["adb:A"].tool("dumpsys", HOT)
    for request in (READY, (PRUNED, 10, 5.0)):
        with pytest.raises(DeviceHot, match=r"A is hot \(thermal status 2\)"):
            phone.call(request)
    phones["adb:A"].tool("dumpsys", "exit 20")
    assert phone.call(READY) is None


def test_another_computer_that_measures_there(phones):
    job = phones["adb:A"].root / "tmp/npas-other"
    job.mkdir()
    (job / "owner").write_text("somebody\n")
    (job / "lease").touch()
    with pytest.raises(DeviceNotFound, match="another computer"):
        Here("adb:A").call(READY)
    assert job.exists()


def searched(folder, phones, say):
    """A search of three candidates whose latencies come from ``phones``."""
    slots = [(1.0, 2.0, 4.0)]
    space = Space(slots, first=[(4.0,)])
    with Measurers({spec: Here(spec) for spec in phones}, say, patience_s=20.0, look_s=0.05) as queue, Journal(folder / "journal.jsonl", space) as journal:

        def timing(choices):
            scheme = Scheme() if choices == (1.0,) else PRUNED
            ratio, low, high, dense_ms = queue.call((scheme, 5, 5.0))
            return Timing(ratio, dense_ms, (low, high))

        evaluator = Evaluator(Inline(lambda choices, rule: Trained(0.9 - 0.01 * choices[0])), timing, timing, lambda choices: 0.5, measurers=queue.size)
        return search(space, lambda s: make_sampler("random", s, 3, 1.0, 0), evaluator, journal, RULES, Silent())


def test_a_search_loses_nothing_when_a_phone_goes_and_comes_back(phones, tmp_path, monkeypatch):
    """One phone answers nothing from its tenth command on, in the middle of its first job, for a while; no trial fails, and nothing stays on either."""
    said: list[str] = []
    phone = phones["adb:A"]
    shell = phone.shell

    def breaking(command, timeout_s=10.0):
        if phone.asked == 10:
            phone.away = 1.0
            threading.Timer(0.5, lambda: setattr(phone, "away", 0.0)).start()
        return shell(command, timeout_s)

    monkeypatch.setattr(phone, "shell", breaking)
    outcome = searched(tmp_path, ["adb:A", "adb:B"], said.append)
    assert len(outcome.trials) == 3 and all(t.state == "complete" or t.latency_ms > 0.9 for t in outcome.trials)
    assert outcome.best is not None and outcome.best.latency_ms < 0.9
    assert any("A was cut" in line or "A has not come back" in line for line in said)
    assert phones["adb:B"].jobs() == []


class TestTheProbedDevice:
    def identity(self, phones):
        return phones["adb:A"].device().probe()

    def test_the_same_one(self, phones):
        known.check_known("adb:A", self.identity(phones), Silent())

    def test_another_one(self, phones):
        with pytest.raises(UsageError, match="another device .pixel, g5. than adb:A") as refused:
            known.check_known("adb:A", self.identity(phones) | {"fingerprint": "0", "model": "pixel", "soc": "g5"}, Silent())
        assert "npas probe --device adb:A" in refused.value.hint
        with pytest.raises(UsageError, match="system or serial number"):
            known.check_known("adb:A", self.identity(phones) | {"fingerprint": "0"}, Silent())

    def test_of_several_those_that_are_there_must_be_of_the_kind(self, phones, monkeypatch):
        who, said = self.identity(phones), Heard()
        known.check_known("adb:A,adb:B", who, said)
        assert not said.lines
        monkeypatch.setattr(phones["adb:B"], "shell", lambda *_, **__: (_ for _ in ()).throw(DeviceNotFound("B does not answer.")))
        known.check_known("adb:A, adb:B", who, said)
        assert said.lines == ["B does not answer. The other phones measure."]
        with pytest.raises(DeviceNotFound):
            known.check_known("adb:B", who, said)
        with pytest.raises(UsageError, match="another device"):
            known.check_known("adb:A,adb:B", who | {"model": "other"}, said)


