"""The host device against hand-written networks whose results, speeds and faults are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from c_models import MANIFEST, build, c_source

from stages.devices import DEVICES, Device, HostDevice, TimingProtocol, list_devices, open_device
from stages.devices.host import choose_cpus
from stages.devices.runner import SOURCE, build_runner, find_cc, read_events
from stages.errors import ArtifactError, DeviceNotFound, RunnerCrashed, UsageError

QUICK = TimingProtocol(runs=12, warmup=2, warmup_seconds=0.0)
X = np.array([[1.0, -2.0, 0.5, 8.0]], dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def double(folder):
    return build(folder, "double", c_source(2.0, ms=0.2))


@pytest.fixture(scope="module")
def triple(folder):
    return build(folder, "triple", c_source(3.0, ms=1.0))


def test_measure_gives_outputs_and_paired_samples(double, triple):
    measured = HostDevice().measure([double, triple], [X], QUICK)
    np.testing.assert_array_equal(measured.outputs[0][0], 2 * X)
    np.testing.assert_array_equal(measured.outputs[1][0], 3 * X)
    assert [len(s) for s in measured.samples_ms] == [12, 12]
    assert min(measured.samples_ms[0]) >= 0.2
    assert min(measured.samples_ms[1]) >= 1.0
    assert all(len(v) == 2 and min(v) >= 0 for v in (measured.init_ms, measured.first_ms))
    assert measured.cpus == (max(os.sched_getaffinity(0)),)
    assert measured.valid, measured.reasons


def test_outputs_alone(double, triple):
    (one,), (two,) = HostDevice().outputs([triple, double], [X])
    np.testing.assert_array_equal(one, 3 * X)
    np.testing.assert_array_equal(two, 2 * X)


def test_inputs_need_not_be_contiguous(double):
    wide = np.arange(8, dtype=np.float32).reshape(1, 8)
    ((out,),) = HostDevice().outputs([double], [wide[:, ::2]])
    np.testing.assert_array_equal(out, [[0, 4, 8, 12]])


def test_chosen_cores_are_used(double):
    first = min(os.sched_getaffinity(0))
    assert HostDevice().measure([double], [X], TimingProtocol(runs=3, warmup=0, warmup_seconds=0, cpus=(first,))).cpus == (first,)


def test_impossible_cores_are_refused():
    with pytest.raises(UsageError, match="may not use"):
        choose_cpus(TimingProtocol(cpus=(100_000,)))
    with pytest.raises(UsageError, match="need as many cores"):
        choose_cpus(TimingProtocol(threads=2, cpus=(max(os.sched_getaffinity(0)),)))


def test_profile_is_the_median_per_kernel(double):
    first, second = HostDevice().profile(double, [X], 7, QUICK)
    assert first in (1.0, 3.0)  # the network reports the two in turn
    assert second == 0.5


def test_warm_up_lasts_as_long_as_asked(folder, double, tmp_path):
    events = tmp_path / "events"
    x = tmp_path / "x.raw"
    X.tofile(x)
    subprocess.run([build_runner(), "--events", events, "--model", double, "16", "2", "--input", x, "--runs", "1", "--warmup", "3", "--warmup-seconds", "0.05"], check=True)
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    warm = [e["runs"] for e in lines if e["event"] == "warm"]
    assert warm == list(range(1, len(warm) + 1))
    assert len(warm) > 3  # 0.2 ms each: three runs would last under a millisecond
    assert [e["event"] for e in lines if e["event"] not in ("warm", "frequency")] == ["loaded", "first", "round", "stable", "end"]


def test_rounds_are_interleaved_and_every_model_takes_every_place(folder, tmp_path):
    """Each model appends its letter to a file, so the file is the order in which the runner really ran them."""
    log = tmp_path / "order"
    body = 'static FILE *f; if (!f) f = fopen("%s", "a"); fputc(\'%s\', f); fflush(f);'
    models = [build(folder, f"log{letter}", "#include <stdio.h>\n" + c_source(body=body % (log, letter))) for letter in "abc"]
    HostDevice().measure(models, [X], TimingProtocol(runs=6, warmup=0, warmup_seconds=0, settle=0))
    assert log.read_text() == "abc" + "abc" "bca" "cab" + "acb" "bac" "cba"


def test_settle_runs_the_model_before_its_sample(folder, tmp_path):
    log = tmp_path / "order"
    body = 'static FILE *f; if (!f) f = fopen("%s", "a"); fputc(\'%s\', f); fflush(f);'
    models = [build(folder, f"settle{letter}", "#include <stdio.h>\n" + c_source(body=body % (log, letter))) for letter in "ab"]
    HostDevice().measure(models, [X], TimingProtocol(runs=3, warmup=1, warmup_seconds=0, settle=2))
    assert log.read_text() == "ab" + "ab" + "aaabbb" + "bbbaaa" + "aaabbb"


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("returns", "return 7;", ["npas_run returned 7"]),
        ("segfault", "if (calls > 3) *(volatile int *)8 = 1;", ["SIGSEGV", "139"]),
        ("illegal", "raise(SIGILL);", ["SIGILL", "132"]),
        ("killed", "raise(SIGKILL);", ["SIGKILL", "137"]),
        ("exits", "exit(5);", ["exit code 5"]),
    ],
)
def test_a_model_that_dies_is_reported(folder, double, name, body, words):
    bad = build(folder, name, c_source(body=body))
    with pytest.raises(RunnerCrashed) as caught:
        HostDevice().measure([double, bad], [X], QUICK)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.exit_code == 8
    assert caught.value.hint


def test_a_model_that_hangs_is_killed(folder):
    hangs = build(folder, "hangs", c_source(body="if (calls > 5) for (;;) sleep(1);"))
    with pytest.raises(RunnerCrashed, match="said nothing for 1 s"):
        HostDevice().measure([hangs], [X], TimingProtocol(runs=50, warmup=0, warmup_seconds=0, timeout_seconds=1.0))
    running = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert not any("hangs.so" in word for words in running for word in words)


def measures(process):
    """Whether it is the runner at work, and not one that only described its models and may just have ended."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "orphan.so" in words and "--describe" not in words


def test_the_runner_dies_with_its_parent(folder):
    hangs = build(folder, "orphan", c_source(body="for (;;) sleep(1);"))
    code = f"import numpy; from stages.devices import HostDevice; HostDevice().outputs(['{hangs}'], [numpy.zeros((1, 4), 'float32')])"
    parent = psutil.Popen([sys.executable, "-c", code])
    child = next(c for _ in range(600) for c in [*parent.children(), time.sleep(0.05)] if c and measures(c))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=10)[1] == []


def test_a_slow_model_that_reports_is_not_killed(folder):
    slow = build(folder, "slow", c_source(ms=150.0))
    assert len(HostDevice().measure([slow], [X], TimingProtocol(runs=4, warmup=0, warmup_seconds=0, settle=0, timeout_seconds=0.5)).samples_ms[0]) == 4


def test_outputs_that_change_make_it_invalid(folder):
    fickle = build(folder, "fickle", c_source(after="if (calls > 4) y[2] += 1;"))
    measured = HostDevice().measure([fickle], [X], QUICK)
    assert not measured.valid
    assert any("outputs changed" in r for r in measured.reasons)
    np.testing.assert_array_equal(measured.outputs[0][0], 2 * X)


def test_missing_file_and_foreign_files(folder, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        HostDevice().outputs([tmp_path / "none.so"], [X])
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(RunnerCrashed, match="can't load the model"):
        HostDevice().outputs([tmp_path / "text.so"], [X])
    with pytest.raises(RunnerCrashed, match="no symbol npas_manifest"):
        HostDevice().outputs([build(tmp_path, "empty", "int nothing;")], [X])
    with pytest.raises(ArtifactError, match="no readable manifest"):
        HostDevice().outputs([build(tmp_path, "bare", c_source(manifest={"schema": "other"}))], [X])


def test_truncated_library(double, tmp_path):
    (tmp_path / "cut.so").write_bytes(double.read_bytes()[:600])
    with pytest.raises(RunnerCrashed):
        HostDevice().outputs([tmp_path / "cut.so"], [X])


@pytest.mark.parametrize("inputs", [[], [X, X], [X[:, :3]], [X.astype(np.float64)]])
def test_wrong_inputs_never_reach_the_c_code(double, inputs):
    with pytest.raises(UsageError, match="compiled for float32 inputs"):
        HostDevice().outputs([double], inputs)


def test_paths_with_spaces_and_quotes(tmp_path):
    odd = tmp_path / 'a "b" c'
    odd.mkdir()
    ((out,),) = HostDevice().outputs([build(odd, "model", c_source(4.0))], [X])
    np.testing.assert_array_equal(out, 4 * X)
    with pytest.raises(RunnerCrashed, match='"b".*returned 7'):
        HostDevice().outputs([build(odd, "bad", c_source(body="return 7;"))], [X])


def test_models_can_be_linked_in(tmp_path):
    """What a phone needs: one executable, no dlopen."""
    renames = [f"-D{name}=one_{name}" for name in ("npas_manifest", "npas_workspace_bytes", "npas_run", "npas_profile")]
    (tmp_path / "one.c").write_text(c_source(5.0))
    (tmp_path / "models.inc").write_text("MODEL(one)\n")
    subprocess.run([*find_cc(), "-c", *renames, "-o", tmp_path / "one.o", tmp_path / "one.c"], check=True)
    subprocess.run([*find_cc(), f"-I{tmp_path}", '-DNPAS_STATIC="models.inc"', "-o", tmp_path / "runner", SOURCE, tmp_path / "one.o"], check=True)
    X.tofile(tmp_path / "x.raw")
    subprocess.run([tmp_path / "runner", "--describe", "--events", tmp_path / "e", "--save", tmp_path / "s", "--model", "one", "", "0"], check=True)
    assert json.loads((tmp_path / "s.0.manifest.json").read_text()) == MANIFEST
    command = [tmp_path / "runner", "--events", tmp_path / "e", "--save", tmp_path / "s", "--input", tmp_path / "x.raw", "--runs", "3"]
    subprocess.run([*command, "--model", "one", "16", "2"], check=True)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "s.0.0.raw", dtype=np.float32), 5 * X[0])
    assert len(read_events((tmp_path / "e").read_text().splitlines()).rounds) == 3
    assert subprocess.run([*command, "--model", "two", "16", "2"]).returncode == 3


def test_bad_arguments_exit_2(tmp_path, double):
    for words in (["--events", tmp_path / "e"], ["--model", double, "16", "2"], ["--wrong", "1"], ["--runs"]):
        assert subprocess.run([build_runner(), *words], stderr=subprocess.DEVNULL).returncode == 2


def test_a_cut_off_event_is_ignored():
    events = read_events(['{"event": "first", "model": 0, "ms": 1.5}', '{"event": "new kind"}', '{"event": "round", "ind'])
    assert events.first_ms == [1.5]
    assert events.rounds == []
    assert not events.ended


def test_runner_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setenv("NPAS_CACHE", str(tmp_path))
    first = build_runner()
    stamp = first.stat().st_mtime_ns
    assert build_runner() == first
    assert first.stat().st_mtime_ns == stamp


def test_unknown_devices():
    assert isinstance(open_device("host"), HostDevice)
    with pytest.raises(DeviceNotFound, match="no device 'fridge'") as caught:
        open_device("fridge")
    assert "host" in caught.value.hint
    assert caught.value.exit_code == 4
    for spec in ("adb", "adb:192.168.0.4:5555"):
        assert open_device(spec).target == "android-arm64"  # it is connected to when it is first asked for something


def test_every_device_keeps_the_protocol():
    methods = [name for name in vars(Device) if not name.startswith("_")]
    for make in DEVICES.values():
        assert all(callable(getattr(make(), name)) for name in methods)
    assert [row["spec"] for row in list_devices()] == list(DEVICES)
