"""Measurements on AOSP's own adbd, ARM code in qemu: the whole way, and every fault on it. No time measured here is a phone's."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from phone_kit import Heard, c_source

from stages.devices import Expected, TimingProtocol, android, open_device
from stages.errors import DeviceFull, RunnerCrashed, UsageError, WrongOutput

pytestmark = pytest.mark.adbd
X = np.array([[1.0, -2.0, 0.5, 8.0]], dtype=np.float32)
QUICK = TimingProtocol(runs=12, warmup=2, warmup_seconds=0.0, profile_runs=3)
RIGHT = Expected(("pruned", "dense"), [(2 * X,), (3 * X,)], 1e-3)
RUNS = 400  # 8 ms each: seconds, so that a fault meets them in mid-run


@pytest.fixture()
def device(phone):
    opened = open_device(f"adb:{phone.address}")
    yield opened
    opened.close()


def left(phone):
    """What npas has left on the phone: folders, and programs that still run."""
    device = open_device(f"adb:{phone.address}")
    folders = device._held().shell("ls -d /data/local/tmp/npas-* 2>/dev/null")[1].split()
    device.close()
    return folders, runners(phone)


def story(phone):
    """What the phone can tell about its jobs."""
    device = open_device(f"adb:{phone.address}")
    text = device._held().shell("cd /data/local/tmp/npas-* && ls -l && date && for f in pid rc stderr events; do echo $f; tail -n 3 $f; done 2>&1; ps 2>&1")[1]
    device.close()
    return text


def runners(phone):
    """Runners at work."""
    return [line for line in phone.processes() if "runner" in line]


def test_the_whole_way(device, phone, networks):
    measured = device.measure(networks, [X], QUICK, RIGHT)
    assert [len(s) for s in measured.samples_ms] == [12, 12]
    np.testing.assert_array_equal(measured.outputs[1][0], 3 * X)
    assert len(measured.cpus) == 1 and [len(ms) for ms in measured.kernel_ms] == [2, 2]
    assert device.probe()["emulated"] is True
    assert left(phone) == ([], [])


def test_wrong_outputs_are_never_timed(device, phone, networks):
    with pytest.raises(WrongOutput, match="pruned"):
        device.measure(networks, [X], QUICK, Expected(RIGHT.names, [(X,), (3 * X,)], 1e-3))
    assert left(phone) == ([], [])


@pytest.mark.parametrize("fault", ["cut", "silent"])
def test_a_bad_cable_in_mid_run_costs_no_run(phone, relay, networks, fault, monkeypatch):
    heard = Heard()
    device = open_device(f"adb:127.0.0.1:{relay.port}", heard)
    wait = android._wait

    def restore():
        relay.cut()  # nothing comes back to life on a silent connection
        relay.silent = False

    def sabotaged(*arguments):  # before the first look, however long the start took
        if fault == "silent":
            relay.silent = True
            threading.Timer(4.0, restore).start()
        else:
            relay.cut()
        return wait(*arguments)

    monkeypatch.setattr(android, "_wait", sabotaged)
    monkeypatch.setattr("stages.devices.job.Job.LOOK_SECONDS", 2.0)
    measured = device.measure(networks, [X], TimingProtocol(runs=RUNS, warmup=2, warmup_seconds=0.0), RIGHT)
    device.close()
    assert [len(s) for s in measured.samples_ms] == [RUNS, RUNS]
    assert measured.conditions.link["losses"] >= 1 and measured.conditions.link["reconnects"] >= 1
    assert any("Reconnecting" in line for line in heard.lines)
    assert left(phone) == ([], [])


def test_adbd_killed_in_mid_run(device, phone, networks, monkeypatch):
    wait = android._wait

    def sabotaged(*arguments):
        phone.kill_adbd()
        return wait(*arguments)

    monkeypatch.setattr(android, "_wait", sabotaged)
    measured = device.measure(networks, [X], TimingProtocol(runs=RUNS, warmup=2, warmup_seconds=0.0), RIGHT)
    assert len(measured.samples_ms[0]) == RUNS and measured.conditions.link["losses"] >= 1


MKDIR = """rm /system/bin/mkdir && cat > /system/bin/mkdir <<'E' && chmod 755 /system/bin/mkdir
#!/bin/sh
/usr/bin/toybox mkdir "$@" || exit
[ "$1" != started ] || kill -HUP 0
E"""


def test_a_link_lost_as_the_job_starts(device, phone, networks):
    """When a link goes, its shell and all that this has begun is hung up on: here when the job counts as started and isn't. It starts all the same, for nobody would start it again."""
    assert device._held().shell(MKDIR) == (0, "")
    measured = device.measure(networks, [X], QUICK)
    assert len(measured.samples_ms[0]) == 12 and measured.conditions.link["losses"] == 1
    assert left(phone) == ([], [])


def test_a_program_that_may_not_be_executed(device, phone, networks, monkeypatch):
    push = type(device._held().connection).push
    monkeypatch.setattr("stages.devices.adb.connection.Connection.push", lambda self, local, remote, progress=None, mode=0o644: push(self, local, remote, progress, 0o644))
    with pytest.raises(RunnerCrashed, match="126"):
        device.measure(networks, [X], QUICK)
    assert left(phone) == ([], [])


def test_a_truncated_executable(device, phone, networks, tmp_path):
    cut = tmp_path / "runner"
    cut.write_bytes(networks[0].program.read_bytes()[:9000])
    with pytest.raises(RunnerCrashed, match="126|139|135"):
        device.measure([type(n)(cut, n.name) for n in networks], [X], QUICK)
    assert left(phone) == ([], [])


def test_masks(device, phone, networks):
    with pytest.raises(UsageError, match="may not use the cores 60"):
        device.measure(networks, [X], TimingProtocol(runs=12, cpus=(60,)))
    with pytest.raises(UsageError, match="Unknown cores 'huge'"):
        device.measure(networks, [X], TimingProtocol(runs=12, cluster="huge"))
    measured = device.measure(networks, [X], TimingProtocol(runs=12, warmup=1, warmup_seconds=0.0, cluster="0x1"))
    assert measured.cpus == (0,)


@pytest.mark.parametrize(("body", "words"), [("for (;;);", ["said nothing for 2 s"]), ("raise(SIGILL);", ["SIGILL", "132"]), ("*(volatile int *)8 = 1;", ["SIGSEGV", "139"])])
def test_a_network_that_hangs_or_dies(device, phone, arm, body, words):
    bad = arm(model=c_source(2.0, body=f"if (calls > 5) {{ {body} }}"))
    with pytest.raises(RunnerCrashed) as caught:
        device.measure(bad, [X], TimingProtocol(runs=50, warmup=1, warmup_seconds=0.0, timeout_seconds=2.0))
    assert all(word in caught.value.message for word in words), caught.value.message
    assert left(phone) == ([], [])


def test_a_full_phone(start_phone, networks):
    device = open_device(f"adb:{start_phone(data_bytes=64 * 1024).address}")
    with pytest.raises(DeviceFull):
        device.measure(networks, [X], QUICK)
    device.close()


def test_a_stale_job_is_ended_and_the_same_job_taken_over(phone, networks):
    """An npas that was killed leaves its job; the next one ends it, or takes it over when it measures the same."""
    slow = TimingProtocol(runs=800, warmup=1, warmup_seconds=0.0)

    class Gone(BaseException):
        pass

    def abandoned(protocol):
        device = open_device(f"adb:{phone.address}")
        patch = pytest.MonkeyPatch()
        patch.setattr("stages.devices.android._wait", lambda *_: (_ for _ in ()).throw(Gone()))
        patch.setattr("stages.devices.job.Job.clear", lambda self: None)
        with pytest.raises(Gone):
            device.measure(networks, [X], protocol)
        patch.undo()
        device.close()

    begun = time.monotonic()
    abandoned(slow)
    gone = time.monotonic()
    working, end = runners(phone), gone + 20
    while not working and time.monotonic() < end:  # not by left(): the job lasts some seconds, and on a busy machine so does a connection
        time.sleep(0.02)
        working = runners(phone)
    assert working, f"abandoned after {gone - begun:.1f} s\n{story(phone)}"
    assert len(left(phone)[0]) == 1  # only folders: a process that is just becoming another program has no command line for a moment
    heard = Heard()
    device = open_device(f"adb:{phone.address}", heard)
    measured = device.measure(networks, [X], slow)
    assert len(measured.samples_ms[0]) == 800 and any("taking over" in line for line in heard.lines)
    assert left(phone) == ([], [])
    abandoned(slow)
    heard.lines.clear()
    device.measure(networks, [X], QUICK)
    assert not heard.lines and left(phone) == ([], [])
    device.close()
