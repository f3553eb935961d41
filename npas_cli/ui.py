"""The screen: people read stderr (progress, notes, errors), programs read stdout (JSON, tables). Rich is imported only where a terminal shows a bar or a table."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO


def is_terminal(stream: TextIO) -> bool:
    """Whether a person watches ``stream`` on something that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Screen:
    """A stages.progress.Progress on stderr: a bar with lines above it on a terminal, one line an outcome elsewhere, nothing with ``quiet``."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def say(self, line: str) -> None:
        """One line for the person."""
        if self.quiet:
            return
        with suppress(OSError, ValueError):  # a closed stderr must not end the work
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=sys.stderr, flush=True)

    def start(self, description: str, total: int | None = None) -> None:
        """Begin a bar; off a terminal nothing shows until the first outcome."""
        self.finish()
        if not self.quiet and is_terminal(sys.stderr):
            self._bar = _rich_bar()
            self._task = self._bar.add_task(description, total=total)
            self._bar.start()

    def advance(self, line: str = "") -> None:
        """One step is done, with an optional outcome line."""
        if line:
            self.say(line)
        if self._bar is not None:
            self._bar.advance(self._task)

    def finish(self) -> None:
        """Leave the bar, if one is shown."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.stop()
        self._bar = self._task = None

    def fail(self, message: str, hint: str = "") -> None:
        """An error: always shown, also with ``quiet``."""
        self.finish()
        with suppress(OSError, ValueError):
            print(f"{_paint('Error:', '1;31')} {message}", file=sys.stderr)
            if hint:
                print(f"{_paint('Hint:', '1;36')} {hint}", file=sys.stderr, flush=True)


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=True)


def _paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if is_terminal(sys.stderr) and not os.environ.get("NO_COLOR") else text


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Meanwhile, whatever is written to stdout goes to stderr: native libraries print there now and then (HiGHS does), and programs read JSON from it."""
    try:
        kept = os.dup(1)
    except OSError:  # closed
        yield
        return
    try:
        _redirect(2)
        yield
    finally:
        _redirect(kept)
        os.close(kept)


def _redirect(target: int) -> None:
    """Descriptor 1 to where ``target`` leads, after what Python and C still hold back for it."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
    with suppress(OSError):  # a closed stderr
        os.dup2(target, 1)


def print_json(document: Mapping[str, Any]) -> None:
    """``document`` as the one JSON object on stdout."""
    print(json.dumps(document, indent=1, allow_nan=False), flush=True)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: columns of numbers to the right, never truncated when piped; colour only on a terminal and without NO_COLOR."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(map(str, row)) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, header in enumerate(headers):
        numeric = all(row[position][:1].isdigit() or row[position] in ("", "-") for row in rows)
        table.add_column(header, justify="right" if rows and numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: no cell is read as markup
    console = Console(width=None if is_terminal(sys.stdout) else 400, highlight=False)
    console.print(table)


def percent(fraction: float | None) -> str:
    """0.9731 -> "97.31" (accuracy is a fraction everywhere but on the screen)."""
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def count(number: float | None) -> str:
    """25_300_000 -> "25.3 M"."""
    if number is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"
