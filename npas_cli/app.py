"""The command line: what is typed -> configuration -> stage -> screen, and the one error boundary. Imports no stage before its command runs."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from npas_cli import options, ui
from npas_cli.commands import BESIDE, COMMANDS, Command
from stages.artifacts import plain
from stages.config import fields
from stages.errors import Interrupted, NpasError, UsageError
from stages.params import Loaded, load

ABOUT = """Prune a trained network to a latency budget measured on your device, and compile what remains so that it is that fast.

The whole pipeline is `dvc repro`; each of its stages is a command here, configured by its section of params.yaml.
`npas COMMAND --help` tells what a command reads, writes and accepts.

Exit codes: 0 ok, 1 failure, 2 usage or bad input, 3 budget can't be met, 4 no such device, 5 phone doesn't trust this computer, 6 phone lost, 7 phone full, 8 runner died, 9 measurement not to be trusted, 10 wrong output, 11 too slow, 130 interrupted."""

app = typer.Typer(
    help=ABOUT, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True
)


@app.callback()
def _top(context: typer.Context, version: bool = typer.Option(False, "--version", help="print the version, and stop")) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"npas {installed('npas')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _add(name: str, help: str, flags: Mapping[str, tuple[type, Any]], body: Callable[..., None]) -> None:
    def command(**values: Any) -> None:
        body(**values)

    command.__signature__ = options.signature(flags)  # type: ignore[attr-defined]
    app.command(name, help=options.escape(help))(command)


def _stage(command: Command) -> Callable[..., None]:
    def body(*, params: str | None, sets: Sequence[str] | None, show_config: bool, save_params: bool, as_json: bool, quiet: bool, verbose: int, **flags: Any) -> None:
        file = Path(params) if params else Path("params.yaml") if Path("params.yaml").exists() else None
        loaded = load(file, sets or (), options.given(command.section, flags))
        _one_budget(loaded)
        if save_params:
            options.save(file or Path("params.yaml"), loaded.overrides)
            loaded = load(file or Path("params.yaml"))
        if show_config:
            _show_config(loaded, command, as_json)
        else:
            _run(command, loaded, ui.Screen(quiet), as_json, verbose)

    return body


def _run(command: Command, loaded: Loaded, screen: ui.Screen, as_json: bool, verbose: int) -> None:
    with _watched(screen, verbose), ui.stdout_kept():
        result = importlib.import_module(command.entry).run(loaded.config, screen, loaded.overrides)
    if as_json:
        ui.print_json(plain(result))
    elif command.section == "report" and not screen.quiet:
        _print_report(result)
    else:
        screen.say(f"wrote {', '.join(command.written(loaded.config.compile.target, loaded.config.compile.backend))}")
    if loaded.overrides and command in COMMANDS:
        screen.say(f"To record this run: {record_line(loaded.overrides)}")


def _one_budget(loaded: Loaded) -> None:
    """budget_ms wins over budget_ratio, so a ratio that was asked for now would be ignored without a word."""
    ms, ratio = (loaded.sources[f"search_scheme.{key}"] for key in ("budget_ms", "budget_ratio"))
    if loaded.config.search_scheme.budget_ms is not None and ratio in ("-S", "flag"):
        value, place = loaded.config.search_scheme.budget_ms, "given too" if ms in ("-S", "flag") else "set in params.yaml"
        raise UsageError(f"A budget ratio was given, but budget_ms is {place} ({value:g} ms) and wins.", "Give one of the two; -S search_scheme.budget_ms=null clears it.")


@contextlib.contextmanager
def _watched(screen: ui.Screen, verbose: int) -> Iterator[None]:
    """What a stage prints goes to stderr, for stdout carries the result only; the bar ends whatever happens."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    started = time.monotonic()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        if not verbose:
            warnings.simplefilter("ignore")  # those of libraries; npas itself says what matters
        try:
            yield
        finally:
            screen.finish()
    if verbose:
        screen.say(f"took {time.monotonic() - started:.1f} s")


def _print_report(result: Mapping[str, Any]) -> None:
    """The table that `make run` ends with."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        interval = " .. ".join(f"{end:.3f}" for end in row["ci95"]) if row.get("ci95") else "-"
        speedup = f"{row['speedup']:.2f}x" if row.get("speedup") is not None else "-"
        latency = f"{row['latency_ms']:.3f}" if row.get("latency_ms") is not None else "-"
        return [row["network"], ui.percent(row.get("top1")), latency, interval, ui.count(row.get("macs")), speedup]

    ui.print_table(["network", "top-1 %", "latency ms", "95% interval", "MACs", "speed-up"], [cells(row) for row in result["rows"]])
    if result.get("devices"):
        from npas_cli.report_devices import HEAD

        def figures(row: Mapping[str, Any]) -> list[str]:
            latency, speedup = (" .. ".join(f"{end:.3f}" for end in row[key]) for key in ("ci95", "speedup_ci95"))
            return [row["device"], f"{row['latency_ms']:.3f}", latency, f"{row['dense_ms']:.3f}", f"{row['speedup']:.2f}x", speedup, row["remark"]]

        print()
        ui.print_table(HEAD, map(figures, result["devices"]))
    if result["budget_ms"] is not None and result["budget_met"] is not None:
        print(f"budget {result['budget_ms']:.3f} ms: {'met' if result['budget_met'] else 'NOT met'}")
    print(f"report {result['report']}")


def _show_config(loaded: Loaded, command: Command, as_json: bool) -> None:
    sections = dict.fromkeys((command.section, "task", "probe"))
    names = [f"{section}.{key}" for section in sections for key in fields(section)]
    if as_json:
        return ui.print_json({name: {"value": plain(loaded.value(name)), "source": loaded.sources[name]} for name in names})
    return ui.print_table(["key", "value", "source"], [(name, options.yaml_text(loaded.value(name)), loaded.sources[name]) for name in names])


def record_line(overrides: Mapping[str, Any]) -> str:
    """The DVC command that would record a run with these values."""
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(f'{name}={options.yaml_text(value)}')}" for name, value in overrides.items())])


def _devices(*, hosts: Sequence[str] | None, as_json: bool, quiet: bool, verbose: int) -> None:
    from stages.devices import list_devices

    if not hosts and Path("params.yaml").exists():
        hosts = load(Path("params.yaml")).config.probe.hosts
    with _watched(ui.Screen(quiet), verbose):
        found = list_devices(hosts or ())
    if as_json:
        return ui.print_json({"devices": found})
    columns = list(dict.fromkeys(key for device in found for key in device))
    return ui.print_table(columns, [[_cell(device.get(key)) for key in columns] for device in found])


def _cell(value: Any) -> str:
    return "-" if value in (None, "", [], ()) else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


for _command in (*COMMANDS, *BESIDE):
    _add(_command.name, _command.help, options.stage_flags(_command), _stage(_command))
_add("devices", "List the devices that latency can be measured on: this machine, and phones on USB, on the network, and of a running adb server.\n\nThe first column is what --device takes.\n\nExample: npas devices --host 192.168.1.5:5555 --json", options.HOSTS | options.OUTPUT, _devices)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure ends here as one sentence and one hint."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: threads that spin while they wait make a busy machine many times slower
    typed = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        with command.make_context("npas", list(typed)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        return _reader_left()
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, typed)
    return 0


def _reader_left() -> int:
    """The reader of stdout has gone (`| head`): nothing to tell, and nothing may be left to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _fail(error: BaseException, typed: Sequence[str]) -> int:
    known = explain(error)
    if sum(word.count("v") for word in typed if re.fullmatch("-[qv]+", word)) + typed.count("--verbose") >= 2:
        traceback.print_exception(error)
    ui.Screen().fail(known.message, known.hint)
    if "--json" in typed:
        try:
            ui.print_json({"error": {"type": type(known).__name__, **plain(vars(known)), "exit_code": known.exit_code}})
        except BrokenPipeError:
            _reader_left()
    return known.exit_code


def explain(error: BaseException) -> NpasError:
    """Any failure as an NpasError."""
    if isinstance(error, NpasError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("Interrupted; what was computed is kept.", "Run the same command to go on.")
    if hasattr(error, "format_message"):  # Typer's own: a wrong flag or command
        path = getattr(getattr(error, "ctx", None), "command_path", "npas")
        return UsageError(_sentence(error.format_message()), f"See '{path} --help'.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return NpasError("Unexpected: no space left on the disk.", "Free some space, then run the same command again; files already written are whole.")
    if isinstance(error, MemoryError):
        return NpasError("Unexpected: out of memory.", "Lower task.batch_size or search_scheme.train_threads, or run again with -vv for the traceback.")
    if isinstance(error, ModuleNotFoundError):
        return NpasError(f"Unexpected: the Python package '{error.name}' is missing.", "Install npas into this environment again (`make run` does), or run again with -vv for the traceback.")
    return NpasError(_sentence(f"Unexpected {type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")), "This is a fault of npas: run again with -vv for the traceback, and report it.")


def _sentence(text: str) -> str:
    return text if text.rstrip().endswith((".", "!", "?", ")")) else f"{text.rstrip()}."


if __name__ == "__main__":
    sys.exit(main())
