"""The child process: answers, errors, crashes, hangs, and ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.errors import NpasError, RunnerCrashed, WrongOutput
from stages.search.worker import Worker


def make(folder: str):
    """Answers (command, argument); what must survive a restart lies in ``folder``."""
    folder = Path(folder)

    def handler(request):
        command, argument = request
        if command == "add":
            return argument + 1
        if command == "raise":
            raise argument
        if command == "die once" and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if command == "hang":
            time.sleep(60)
        if command == "cores":
            return sorted(os.sched_getaffinity(0))
        print("to stdout")
        return os.getpid()

    return handler


def test_answers_and_keeps_its_process(tmp_path):
    with Worker(make, str(tmp_path)) as worker:
        assert worker.call(("add", 1)) == 2
        assert worker.call(("pid", None)) == worker.call(("pid", None)) == worker.pid != os.getpid()


def test_exceptions_come_back_and_leave_it_alive(tmp_path):
    with Worker(make, str(tmp_path)) as worker:
        with pytest.raises(WrongOutput, match="far off"):
            worker.call(("raise", WrongOutput("far off", "hint")))
        with pytest.raises(NpasError, match="ValueError: odd"):
            worker.call(("raise", ValueError("odd")))
        assert worker.call(("add", 1)) == 2


def test_one_crash_is_repaired_two_are_an_error(tmp_path):
    with Worker(make, str(tmp_path)) as worker:
        assert isinstance(worker.call(("die once", None)), int)
        with pytest.raises(RunnerCrashed, match="SIGSEGV"):
            worker.call(("die", None))
        assert worker.call(("add", 1)) == 2


def test_a_hanging_one_is_stopped(tmp_path):
    with Worker(make, str(tmp_path), timeout=1.0) as worker, pytest.raises(RunnerCrashed, match="silent for 1 s"):
        worker.call(("hang", None))


def test_runs_on_its_cores_and_keeps_off_stdout(tmp_path, capfd):
    core = max(os.sched_getaffinity(0))
    with Worker(make, str(tmp_path), cpus={core}) as worker:
        assert worker.call(("cores", None)) == [core]
        worker.call(("print", None))
    assert capfd.readouterr().out == ""


PARENT = """
import time
from stages.search.worker import Worker

def make():
    return lambda request: request

if __name__ == "__main__":
    worker = Worker(make)
    worker.call(1)
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)
