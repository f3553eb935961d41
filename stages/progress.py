"""How a stage reports to whoever watches. npas_cli/ui.py implements it, so that no import points back. Imports nothing of npas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a stage may tell its watcher; implementations never raise and never print to stdout."""

    def say(self, line: str) -> None:
        """One line for the person: shown above the bar on a terminal, as a plain line elsewhere."""

    def start(self, description: str, total: int | None = None) -> None:
        """Begin a bar of ``total`` steps (None: unknown). A second start replaces the first."""

    def advance(self, line: str = "") -> None:
        """One step is done; ``line`` tells its outcome ("epoch 3/5  loss 0.21  top1 97.3")."""

    def finish(self) -> None:
        """The current bar is complete or abandoned."""


class Silent:
    """A Progress that tells nobody (tests, library use)."""

    def say(self, line: str) -> None:  # noqa: D102
        pass

    def start(self, description: str, total: int | None = None) -> None:  # noqa: D102
        pass

    def advance(self, line: str = "") -> None:  # noqa: D102
        pass

    def finish(self) -> None:  # noqa: D102
        pass


@contextmanager
def bar(progress: Progress, description: str, total: int | None = None) -> Iterator[Progress]:
    """``with bar(progress, "fine-tuning", 5): ...`` starts a bar and always finishes it."""
    progress.start(description, total)
    try:
        yield progress
    finally:
        progress.finish()
