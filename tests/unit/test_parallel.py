"""Pools of worker processes: order of completion, errors and deaths as answers, cores, and no process left behind; the same pool on a local Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.errors import NpasError, UsageError, WorkerLost, WrongOutput
from stages.parallel import Pool, open_pool, share_out, visible

ROOT = Path(__file__).parents[2]
CORES = sorted(os.sched_getaffinity(0))


def make(folder: str):
    """Answers (command, argument); workers meet each other in ``folder``."""

    def handler(request):
        command, argument = request
        if command == "raise":
            raise argument
        if command == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "wait for":
            while not Path(folder, argument).exists():
                time.sleep(0.01)
        if command == "touch":
            Path(folder, argument).touch()
        if command == "cores":
            return sorted(os.sched_getaffinity(0))
        if command == "environment":
            return os.environ.get(argument)
        if command == "unpicklable":
            return lambda: None
        return os.getpid()

    return handler


def broken(_: str):
    raise ValueError("no data")


def answers(pool: Pool, requests: dict) -> dict:
    for key, request in requests.items():
        pool.submit(key, request)
    return dict(pool.next(60) for _ in requests)


def check_order_errors_and_deaths(pool: Pool) -> None:
    pool.submit("slow", ("wait for", "now"))
    pool.submit("quick", ("touch", "now"))  # the first can only end after the second
    first, second = pool.next(60), pool.next(60)
    assert {first[0], second[0]} == {"slow", "quick"} and first[1] != second[1]
    found = answers(pool, {"a": ("raise", WrongOutput("far off", "hint")), "b": ("raise", ValueError("odd")), "c": ("die", None), "d": ("pid", None), "e": ("pid", None)})
    assert isinstance(found["a"], WrongOutput) and (found["a"].message, found["a"].hint) == ("far off", "hint")
    assert type(found["b"]) is NpasError and found["b"].message == "ValueError: odd"
    assert isinstance(found["c"], WorkerLost)
    assert isinstance(found["d"], int) and isinstance(found["e"], int)
    assert pool.pending == 0
    with pytest.raises(LookupError):
        pool.next()


def test_order_of_completion_errors_and_deaths(tmp_path):
    with open_pool(make, str(tmp_path), workers=2) as pool:
        check_order_errors_and_deaths(pool)


def test_a_worker_that_was_killed_while_idle_costs_nothing(tmp_path):
    with open_pool(make, str(tmp_path), workers=1) as pool:
        pid = answers(pool, {0: ("pid", None)})[0]
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        assert isinstance(answers(pool, {1: ("pid", None)})[1], int)


def test_the_fate_of_a_lost_worker_is_told_and_more_requests_than_workers_wait(tmp_path):
    with open_pool(make, str(tmp_path), workers=1) as pool:
        found = answers(pool, {i: ("die" if i % 2 else "pid", None) for i in range(4)})
        assert [isinstance(found[i], WorkerLost) for i in range(4)] == [False, True, False, True]
        assert "SIGKILL" in found[1].message and found[0] != found[2]


def test_what_cannot_be_built_or_sent_is_an_answer(tmp_path):
    with open_pool(broken, str(tmp_path), workers=1) as pool:
        assert "no data" in answers(pool, {0: None})[0].message
    with open_pool(make, str(tmp_path), workers=1) as pool:
        found = answers(pool, {0: ("unpicklable", None), 1: ("pid", None)})
        assert isinstance(found[0], NpasError) and isinstance(found[1], int)


def test_timeout_leaves_the_request_at_work(tmp_path):
    with open_pool(make, str(tmp_path), workers=1) as pool:
        pool.submit("slow", ("wait for", "now"))
        with pytest.raises(TimeoutError):
            pool.next(0.05)
        (tmp_path / "now").touch()
        assert pool.next(60)[0] == "slow"


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_each_worker_has_its_cores(tmp_path):
    with open_pool(make, str(tmp_path), workers=2, cpus=CORES[:2]) as pool:
        assert sorted(answers(pool, dict.fromkeys(range(2), ("cores", None))).values()) == [[CORES[0]], [CORES[1]]]


def test_each_worker_sees_one_cuda_device(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [visible(0), visible(1)] == ["3", "5"]
    with open_pool(make, str(tmp_path), workers=2, cuda_devices=2) as pool:
        assert set(answers(pool, dict.fromkeys(range(2), ("environment", "CUDA_VISIBLE_DEVICES"))).values()) == {"3", "5"}


def test_share_out():
    assert share_out(range(5), 2) == [(0, 1, 2), (3, 4)]
    assert share_out((4, 7), 3) == [(4,), (7,), (4,)]
    assert share_out((), 2) == [(), ()]
    for cores in range(1, 9):
        for workers in range(1, cores + 1):
            shares = share_out(range(cores), workers)
            assert sorted(core for share in shares for core in share) == list(range(cores)) and max(map(len, shares)) - min(map(len, shares)) <= 1


PARENT = """
import sys, time
from stages.parallel import open_pool

def make():
    def handler(request):
        if request == "pid":
            import os
            return os.getpid()
        time.sleep(300)
    return handler

if __name__ == "__main__":
    with open_pool(make, workers=2) as pool:
        for i in range(2):
            pool.submit(i, "pid")
        pids = [pool.next()[1] for _ in range(2)]
        pool.submit(0, "sleep")
        print(*pids, flush=True)
        pool.next()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_parent(tmp_path, how):
    """One is at work, one is idle."""
    (tmp_path / "parent.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + PARENT)  # ignored where tests run in the background
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(how)
    parent.wait()
    assert all(ended(pid) for pid in pids)


def test_close_ends_workers_at_work(tmp_path):
    with open_pool(make, str(tmp_path), workers=2) as pool:
        pids = answers(pool, dict.fromkeys(range(2), ("pid", None))).values()
        pool.submit(0, ("wait for", "never"))
    assert all(ended(pid) for pid in pids)


def ended(pid: int) -> bool:
    """Waits for the end of a process, at most 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1:
                return True  # all of its threads, so its connection is closed
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_ray_must_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as raised:
        open_pool(make, "", workers="ray")
    assert "npas[ray]" in raised.value.hint


@pytest.fixture
def ray_cluster(monkeypatch) -> Iterator[None]:
    """Two nodes of one core each, as processes of this machine; workers import this file by its folder."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray isn't installed (pip install 'npas[ray]')")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield
    cluster.shutdown()


@pytest.mark.full
def test_ray_cluster(tmp_path, ray_cluster):
    with open_pool(make, str(tmp_path), workers="ray") as pool:
        assert pool.size == 2
        check_order_errors_and_deaths(pool)
    with pytest.raises(UsageError, match="no room"):
        open_pool(make, str(tmp_path), workers="ray", threads=4096)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray isn't installed (pip install 'npas[ray]')")
def test_without_an_address_ray_runs_on_the_given_cores_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    with open_pool(make, str(tmp_path), workers="ray", cpus=CORES[:1]) as pool:
        assert pool.size == 1
        assert answers(pool, {0: ("cores", None)}) == {0: CORES[:1]}
