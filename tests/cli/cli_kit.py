"""What the tests of the command line hold in hand: a finished run, and a stand-in for a stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.config import Config
from stages.progress import Progress


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which must be exactly one JSON object."""
        return json.loads(self.out)


class Stage:
    """The ``run`` of a stage: records what it was given, then does ``body``."""

    def __init__(self, body: Callable[[Config, Progress], Any] | None = None):
        self.body = body or (lambda config, progress: {"top1": 0.9731, "macs": 12345})
        self.calls: list[tuple[Config, Mapping[str, Any]]] = []

    def run(self, config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
        self.calls.append((config, overrides))
        return self.body(config, progress)

    @property
    def config(self) -> Config:
        return self.calls[-1][0]


Run = Callable[..., Result]
Install = Callable[..., Stage]
