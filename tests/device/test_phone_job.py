"""The job protocol on a phone that is a folder: what is measured, what a fault costs, what stays behind (nothing)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from c_models import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phone_kit import FolderPhone, c_source, linked

from stages.devices import TimingProtocol, android, runner
from stages.devices.clusters import choose_cores
from stages.devices.correct import Expected
from stages.devices.host import HostDevice
from stages.devices.several import Several
from stages.errors import DeviceLost, DeviceNotFound, InvalidMeasurement, UsageError, WrongOutput

QUICK = TimingProtocol(runs=12, warmup=2, warmup_seconds=0.0, profile_runs=3)
X = np.array([[1.0, -2.0, 0.5, 8.0]], dtype=np.float32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return linked(tmp_path_factory.mktemp("linked"), model=c_source(2.0, ms=0.2), dense=c_source(3.0, ms=1.0))


@pytest.fixture()
def phone(tmp_path):
    return FolderPhone(tmp_path / "phone")


def expected(*factors, names=("pruned", "dense")):
    return Expected(names, [(np.float32(f) * X,) for f in factors], 1e-3)


def test_a_measurement_brings_everything_and_leaves_nothing(phone, networks):
    measured = phone.device().measure(networks, [X], QUICK, expected(2, 3))
    assert [len(s) for s in measured.samples_ms] == [12, 12]
    assert min(measured.samples_ms[0]) >= 0.2 and min(measured.samples_ms[1]) >= 1.0
    np.testing.assert_array_equal(measured.outputs[1][0], 3 * X)
    assert measured.manifests[0]["kernels"][0]["layer"] == "scale"
    assert [len(ms) for ms in measured.kernel_ms] == [2, 2]
    assert measured.conditions.sdk == 31 and measured.conditions.link == {"losses": 0, "reconnects": 0}
    assert measured.valid, measured.reasons
    assert phone.jobs() == []


def test_wrong_outputs_are_never_timed(phone, networks):
    with pytest.raises(WrongOutput, match="dense"):
        phone.device().measure(networks, [X], QUICK, expected(2, 4))
    assert phone.jobs() == []


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(faults=st.sets(st.integers(1, 24), max_size=4))
def test_whatever_answers_are_lost_no_run_is(tmp_path_factory, networks, faults):
    """Each command is cut off after it was carried out, the worst moment: it is asked again and must do no harm."""
    phone = FolderPhone(tmp_path_factory.mktemp("phone") / "root")
    phone.faults = faults
    measured = phone.device().measure(networks, [X], TimingProtocol(runs=5, warmup=0, warmup_seconds=0.0), expected(2, 3))
    assert [len(s) for s in measured.samples_ms] == [5, 5]
    lost = len([k for k in faults if k <= phone.asked])
    assert phone.losses == phone.reconnects == lost and phone.jobs() == []


def test_a_phone_that_stays_away_goes_on_and_is_found_again(phone, networks, monkeypatch):
    said: list[str] = []
    wait = android._wait

    def unplugged(*arguments):
        phone.away = 1.0
        return wait(*arguments)

    monkeypatch.setattr(android, "_wait", unplugged)
    with pytest.raises(DeviceLost, match="goes on there"):
        phone.device().measure(networks, [X], QUICK)
    assert len(phone.jobs()) == 1
    phone.away = 0.0
    monkeypatch.setattr(android, "_wait", wait)
    assert len(phone.device(said).measure(networks, [X], QUICK).samples_ms[0]) == 12
    assert any("taking over" in line for line in said) and phone.jobs() == []


@pytest.mark.parametrize("shell", ["sh", "bash", "mksh"])
def test_the_command_that_starts_a_job_does_not_last_as_long(phone, tmp_path, monkeypatch, shell):
    """Not even where nobody hangs up on the shell that starts it. This job lasts until it has been looked at."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    phone.sh = shell
    wait, looks = android._wait, []

    def looking(job, *rest):
        looks.append(job.look())
        (phone.jobs()[0] / "seen").touch()
        return wait(job, *rest)

    monkeypatch.setattr(android, "_wait", looking)
    measured = phone.device().measure(linked(tmp_path / "linked", model=c_source(2.0, body='while (access("seen", F_OK)) usleep(1000);')), [X], QUICK)
    assert [(look.rc, look.alive) for look in looks] == [(None, True)] and len(measured.samples_ms[0]) == 12


def test_files_that_never_arrive_whole_leave_nothing_and_promise_nothing(phone, networks, monkeypatch):
    def damaged(*_, **__):
        raise DeviceLost("runner arrived damaged on folder.")

    monkeypatch.setattr(phone, "push", damaged)
    with pytest.raises(DeviceLost) as lost:
        phone.device().measure(networks, [X], QUICK)
    assert lost.value.message == "runner arrived damaged on folder." and phone.jobs() == []


def test_ctrl_c_cleans_up(phone, networks, monkeypatch):
    monkeypatch.setattr(android, "_wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        phone.device().measure(networks, [X], TimingProtocol(runs=10_000))
    assert phone.jobs() == []


def test_another_computers_job_is_respected_until_nobody_looks_at_it(phone, networks):
    job = phone.root / "tmp/npas-other"
    job.mkdir()
    (job / "owner").write_text("somebody\n")
    (job / "lease").touch()
    with pytest.raises(DeviceNotFound, match="another computer"):
        phone.device().measure(networks, [X], QUICK)
    os.utime(job / "lease", (0, 0))
    assert len(phone.device().measure(networks, [X], QUICK).samples_ms[0]) == 12
    assert phone.jobs() == []


HOT = "IsStatusOverride: false\nThermal Status: {}\nCurrent temperatures from HAL:\n\tTemperature{{mValue=41.5, mType=3, mName=skin, mStatus=1}}\nnext:\n"


def test_a_hot_phone_is_waited_for(phone, networks, monkeypatch):
    monkeypatch.setattr("stages.devices.preflight.LOOK_SECONDS", 0.05)
    phone.tool("dumpsys", f"cat <<'E'\n{HOT.format(2)}E")
    said: list[str] = []
    with pytest.raises(InvalidMeasurement, match="still hot"):
        phone.device(said).measure(networks, [X], dataclasses.replace(QUICK, cool_seconds=0.3))
    assert len(said) == 1 and "waiting" in said[0] and phone.jobs() == []
    phone.tool("dumpsys", f"n=$(cat {phone.root}/asked 2>/dev/null || echo 0); echo $((n+1)) > {phone.root}/asked; [ $n -lt 4 ] && s=2 || s=0\ncat <<E\n{HOT.format('$s')}E")
    measured = phone.device().measure(networks, [X], dataclasses.replace(QUICK, cool_seconds=30))
    assert measured.conditions.thermal["before"] == 0 and measured.conditions.thermal["trace"][0][2] == 41.5


def test_a_status_that_rises_makes_it_invalid(phone, networks):
    """The status is asked before and after: 0, then 1."""
    phone.tool("dumpsys", f"[ -n \"$(cat {phone.root}/tmp/npas-*/rc 2>/dev/null)\" ] && s=1 || s=0\ncat <<E\n{HOT.format('$s')}E")
    measured = phone.device().measure(networks, [X], QUICK)
    assert not measured.valid and any("thermal status rose from 0 to 1" in reason for reason in measured.reasons)


def test_the_wrong_kind_of_phone(phone, networks):
    phone.tool("getprop", "echo '[ro.product.cpu.abi]: [armeabi-v7a]'")
    with pytest.raises(UsageError, match="arm64-v8a"):
        phone.device().measure(networks, [X], QUICK)


def test_equal_phones_take_turns_and_one_that_is_gone_is_replaced(tmp_path, networks):
    phones = {name: FolderPhone(tmp_path / name, name) for name in ("A", "B")}
    said: list[str] = []
    several = Several({f"adb:{name}": phone.device() for name, phone in phones.items()}, said.append)
    for _ in range(2):
        several.measure(networks, [X], QUICK)
    assert all(phone.asked for phone in phones.values())
    phones["A"].away = 1.0
    for _ in range(2):
        assert len(several.measure(networks, [X], QUICK).samples_ms[0]) == 12
    assert any("Another phone takes over" in line for line in said)
    phones["B"].away = 1.0
    with pytest.raises(DeviceLost):
        several.measure(networks, [X], QUICK)


def test_phones_of_different_kinds_are_refused(tmp_path):
    phones = [FolderPhone(tmp_path / name, name) for name in ("A", "B")]
    phones[1].tool("getprop", "echo '[ro.product.cpu.abi]: [arm64-v8a]'; echo '[ro.product.model]: [other]'")
    with pytest.raises(UsageError, match="The phones differ"):
        Several({phone.name: phone.device() for phone in phones}).probe()


@pytest.mark.parametrize(
    ("wanted", "threads", "cores"), [("big", 1, (7,)), ("big", 2, (6, 7)), ("little", 1, (3,)), ("little", 4, (0, 1, 2, 3)), ("0xf0", 2, (4, 5, 6, 7)), ("", 1, (7,))]
)
def test_clusters(wanted, threads, cores):
    clusters = [{"cores": [7], "max_khz": 3_000_000}, {"cores": [4, 5, 6], "max_khz": 2_400_000}, {"cores": [0, 1, 2, 3], "max_khz": 1_800_000}]
    assert choose_cores(wanted, (), threads, clusters, range(8)) == cores


def test_this_machine_and_a_phone_run_one_runner(tmp_path, phone, monkeypatch):
    """Libraries that are loaded here, an executable that holds them there: out of one runner.c, told in the same events with the same fields, judged by the same rules."""
    sources = {"model": c_source(2.0, ms=0.2), "dense": c_source(3.0, ms=1.0)}
    told: list[dict[str, set[str]]] = []
    read = runner.read_events

    def reading(lines):
        lines = list(lines)
        events = [json.loads(line) for line in lines]
        told.append({event["event"]: set(event) for event in events})
        return read(lines)

    monkeypatch.setattr(runner, "read_events", reading)
    here = HostDevice().measure([build(tmp_path, name, source) for name, source in sources.items()], [X], QUICK, expected(2, 3))
    on_host = told[-1]
    there = phone.device().measure(linked(tmp_path / "linked", **sources), [X], QUICK, expected(2, 3))
    assert on_host == told[-1] and {"loaded", "first", "check", "round", "affinity", "end"} <= set(on_host)
    for a, b in zip(here.outputs, there.outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.shape(here.samples_ms) == np.shape(there.samples_ms) == (2, 12) and here.manifests == there.manifests
