"""What the command line gives back: exit codes, one JSON object, one sentence and one hint, and never a traceback unless asked."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import Install, Run

from stages import errors
from stages.artifacts import read_json, write_json
from stages.config import Config
from stages.progress import Progress, bar


def raising(error: BaseException) -> Callable[[Config, Progress], None]:
    def body(config: Config, progress: Progress) -> None:
        raise error

    return body


def test_json_is_exactly_what_the_stage_returned_and_nothing_else_on_stdout(stage: Install, npas: Run) -> None:
    def chatty(config: Config, progress: Progress) -> dict[str, object]:
        print("a library prints")
        progress.say("told")
        return {"top1": 0.5, "path": Path("x"), "rates": (2.0,)}

    stage("bench", chatty)
    result = npas("bench", "--json", "--runs", "20")
    assert result.code == 0 and result.json == {"top1": 0.5, "path": "x", "rates": [2.0]}
    assert "a library prints" in result.err and "told" in result.err


def test_off_a_terminal_each_outcome_is_a_plain_line_on_stderr(stage: Install, npas: Run) -> None:
    def trials(config: Config, progress: Progress) -> dict[str, float]:
        with bar(progress, "searching", 2):
            progress.advance("trial 1/2  top1 74.1  6.62 ms <= 6.70 [x.y]")
            progress.advance()
            progress.say("note")
        return {"top1": 0.741}

    stage("search_scheme", trials)
    result = npas("search-scheme")
    assert result.out == ""
    assert result.err.splitlines()[:2] == ["trial 1/2  top1 74.1  6.62 ms <= 6.70 [x.y]", "note"]
    assert result.err.splitlines()[2].startswith("wrote search_scheme/scheme.json, ")
    assert "\033" not in result.err
    assert npas("search-scheme", "--quiet").err == ""


FAILURES = [
    (errors.NpasError("It broke.", "Mend it."), 1),
    (errors.UsageError("It broke.", "Mend it."), 2),
    (errors.ArtifactError("It broke.", "Mend it."), 2),
    (errors.InfeasibleBudget("It broke.", "Mend it.", 7.25), 3),
    (errors.DeviceNotFound("It broke.", "Mend it."), 4),
    (errors.DeviceUnauthorised("It broke.", "Mend it."), 5),
    (errors.DeviceLost("It broke.", "Mend it."), 6),
    (errors.DeviceFull("It broke.", "Mend it."), 7),
    (errors.RunnerCrashed("It broke.", "Mend it."), 8),
    (errors.InvalidMeasurement("It broke.", "Mend it."), 9),
    (errors.DeviceHot("It broke.", "Mend it."), 9),
    (errors.WrongOutput("It broke.", "Mend it."), 10),
    (errors.TooSlow("It broke.", "Mend it."), 11),
    (errors.WorkerLost("It broke.", "Mend it."), 1),
    (errors.Interrupted("It broke.", "Mend it."), 130),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_known_failures_are_one_sentence_one_hint_and_their_code(error: errors.NpasError, code: int, stage: Install, npas: Run) -> None:
    stage("bench", raising(error))
    result = npas("bench")
    assert (result.code, result.out, result.err) == (code, "", "Error: It broke.\nHint: Mend it.\n")


def test_every_kind_of_error_is_in_the_table_above() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NpasError)}
    assert kinds - {errors.UnsupportedOperator} == {type(error) for error, _ in FAILURES}


def test_with_json_a_failure_is_one_object_too(stage: Install, npas: Run) -> None:
    stage("search_scheme", raising(errors.InfeasibleBudget("No candidate meets 1 ms.", "Raise it.", best_ms=7.25)))
    result = npas("search-scheme", "--json")
    assert result.json == {"error": {"type": "InfeasibleBudget", "message": "No candidate meets 1 ms.", "hint": "Raise it.", "best_ms": 7.25, "exit_code": 3}}
    assert result.err.startswith("Error: ")
    usage = npas("search-scheme", "--jsn", "--json")
    assert usage.json["error"]["exit_code"] == usage.code == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("two\nlines [bold]"), "Unexpected RuntimeError: two lines [bold]."),
        (KeyError("x"), "Unexpected KeyError: 'x'."),
        (MemoryError(), "Unexpected: out of memory."),
        (OSError(errno.ENOSPC, "No space left on device"), "Unexpected: no space left on the disk."),
        (PermissionError(errno.EACCES, "Permission denied", "model.pt"), "Permission denied"),
        (ModuleNotFoundError("No module named 'skopt'", name="skopt"), "the Python package 'skopt' is missing"),
        (AssertionError(), "Unexpected AssertionError."),
    ],
)
def test_unexpected_failures_are_one_sentence_and_tell_of_vv(error: Exception, message: str, stage: Install, npas: Run) -> None:
    stage("bench", raising(error))
    result = npas("bench")
    assert result.code == 1 and message in result.err and result.err.count("\n") == 2 and "Hint: " in result.err


@pytest.mark.parametrize("flags", [["-vv"], ["-v", "-v"], ["-qvv"], ["--verbose", "--verbose"]])
def test_a_traceback_only_with_vv(flags: list[str], stage: Install, npas: Run) -> None:
    stage("bench", raising(errors.UsageError("It broke.", "Mend it.")))
    assert "Traceback" not in npas("bench", "-v").err
    result = npas("bench", *flags)
    assert "Traceback" in result.err and "It broke." in result.err and result.code == 2


def test_warnings_of_libraries_show_only_with_v(stage: Install, npas: Run) -> None:
    def warns(config: Config, progress: Progress) -> dict[str, object]:
        import warnings

        warnings.warn("something is deprecated", stacklevel=1)
        return {}

    stage("bench", warns)
    assert "deprecated" not in npas("bench").err
    with pytest.warns(UserWarning, match="deprecated"):
        assert "took" in npas("bench", "-v").err


def test_unusable_artifacts_and_folders_arrive_as_errors(stage: Install, npas: Run, project: Path) -> None:
    path = "search_scheme/scheme.json"
    stage("compile", lambda config, progress: read_json(path))
    assert (missing := npas("compile")).code == 2 and "Error: search_scheme/scheme.json does not exist." in missing.err and "npas search-scheme" in missing.err
    (project / "search_scheme").mkdir()
    for content, word in (("{", "is damaged"), ('{"schema": "npas-scheme/99"}', "npas-scheme/99")):
        (project / path).write_text(content)
        result = npas("compile")
        assert result.code == 2 and word in result.err and "npas search-scheme" in result.err
    (project / "bench").write_text("a file where the folder should be")
    stage("bench", lambda config, progress: write_json("bench/latency.json", {}))
    assert (full := npas("bench")).code == 1 and "Error: Can't write bench/latency.json" in full.err and "permissions" in full.err


def test_report_prints_its_table(stage: Install, npas: Run) -> None:
    rows = [
        {"network": "original", "top1": 0.981, "latency_ms": 1.5, "ci95": [1.4, 1.6], "macs": 25_300_000, "speedup": None},
        {"network": "dense [1]", "top1": 0.9731, "latency_ms": 1.25, "ci95": None, "macs": 24_000_000, "speedup": 1.0},
    ]
    stage("report", lambda config, progress: {"rows": rows, "budget_ms": 0.625, "budget_met": False, "report": "report.html"}, module="npas_cli.report")
    result = npas("report")
    lines = result.out.splitlines()
    assert lines[0].split() == ["network", "top-1", "%", "latency", "ms", "95%", "interval", "MACs", "speed-up"]
    assert lines[2].split() == ["original", "98.10", "1.500", "1.400", "..", "1.600", "25.3", "M", "-"]
    assert lines[3].split() == ["dense", "[1]", "97.31", "1.250", "-", "24", "M", "1.00x"]
    assert lines[-2:] == ["budget 0.625 ms: NOT met", "report report.html"]
    assert npas("report", "--json").json["rows"] == rows
    assert npas("report", "--quiet").out == ""


def test_devices_are_listed(npas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.devices

    found = [{"kind": "host", "name": "host", "soc": "Xeon [x.y]", "cores": 2, "isa": ["avx2", "avx512"], "state": "ready"}]
    monkeypatch.setattr(stages.devices, "list_devices", lambda hosts: found, raising=False)
    assert npas("devices", "--json").json == {"devices": found}
    lines = npas("devices").out.splitlines()
    assert lines[0].split() == ["kind", "name", "soc", "cores", "isa", "state"] and "Xeon [x.y]" in lines[2] and "avx2 avx512" in lines[2]


def test_npas_alone_shows_help_and_version_is_the_package_s(npas: Run) -> None:
    from importlib.metadata import version

    assert (alone := npas()).code == 0 and "search-scheme" in alone.out and alone.out == npas("--help").out
    assert npas("--version").out == f"npas {version('npas')}\n"


# ---- as a process: what only shows there

FAKE = """
import sys, types
from npas_cli.app import main
module = types.ModuleType("stages.bench")
exec(sys.argv[1], module.__dict__)
sys.modules["stages.bench"] = module
sys.exit(main(sys.argv[2:]))
"""


def process(body: str, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    """The command as a process of its own, that listens to Ctrl-C even where the tests themselves run in the background and don't."""
    words = [sys.executable, "-c", FAKE, body, "bench", *arguments]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )


def test_building_the_help_imports_nothing_heavy() -> None:
    code = "import sys; from npas_cli.app import main; main(['--help']); main(['search-scheme', '--help']); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    assert not {"torch", "torchvision", "tvm", "skopt", "sklearn", "numpy", "scipy", "dvc"} & set(loaded)


def test_ctrl_c_leaves_with_130_and_says_how_to_go_on(project: Path) -> None:
    body = "import time\ndef run(config, progress, overrides):\n    progress.say('started')\n    time.sleep(60)\n"
    child = process(body, "--json", folder=project)
    assert child.stderr is not None and child.stderr.readline() == "started\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err == "Error: Interrupted; what was computed is kept.\nHint: Run the same command to go on.\n"
    assert json.loads(out)["error"]["exit_code"] == 130


def test_a_reader_that_leaves_early_is_no_error(project: Path) -> None:
    child = process("def run(config, progress, overrides):\n    return {'x': 'y' * 1_000_000}\n", "--json", folder=project)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.wait(timeout=30) == 141 and "Traceback" not in child.stderr.read()
    child.stderr.close()


def test_what_libraries_print_on_stdout_does_not_spoil_the_json(project: Path) -> None:
    body = "import ctypes, os\ndef run(config, progress, overrides):\n    os.write(1, b'from a library\\n')\n    ctypes.CDLL(None).puts(b'held back by C')\n    print('from Python')\n    return {'ok': 1}\n"
    child = process(body, "--json", folder=project)
    out, err = child.communicate(timeout=30)
    assert json.loads(out) == {"ok": 1} and child.returncode == 0
    assert all(text in err for text in ("from a library", "held back by C", "from Python"))


def test_on_a_terminal_a_bar_is_drawn_and_outcomes_stay_above_it(project: Path) -> None:
    """Through a pseudo-terminal: the bar's escape codes are there, lines are whole, and stdout still holds the JSON only."""
    import pty

    body = "import time\ndef run(config, progress, overrides):\n    progress.start('searching [x.y]', 2)\n    progress.advance('trial 1/2 [x.y]')\n    time.sleep(0.3)\n    progress.finish()\n    return {'ok': 1}\n"
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen([sys.executable, "-c", FAKE, body, "bench", "--json"], cwd=project, stdout=subprocess.PIPE, stderr=slave, text=True, env=env)
    os.close(slave)
    out, _ = child.communicate(timeout=30)
    screen = os.read(master, 1 << 20).decode()
    os.close(master)
    assert json.loads(out) == {"ok": 1} and child.returncode == 0
    assert "trial 1/2 [x.y]" in screen and "searching [x.y]" in screen and "\033[" in screen


def test_a_dumb_terminal_gets_plain_lines(project: Path) -> None:
    import pty

    body = "def run(config, progress, overrides):\n    progress.start('searching', 1)\n    progress.advance('done')\n    return {}\n"
    master, slave = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", FAKE, body, "bench"], cwd=project, stdout=subprocess.PIPE, stderr=slave, text=True, env={**os.environ, "TERM": "dumb"})
    os.close(slave)
    child.communicate(timeout=30)
    time.sleep(0.05)
    screen = os.read(master, 1 << 20).decode()
    os.close(master)
    assert screen.splitlines()[0] == "done" and "\033" not in screen
