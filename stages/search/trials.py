"""The journal of a search: an append-only file of JSON lines that survives kill -9, and rows for trials.json. Imports errors and space only."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError, NpasError, UsageError
from stages.search.space import Choices, Space, Trial

CODE = ("search", "schemes", "graph", "tasks", "compiler", "devices")


@dataclass(frozen=True)
class Timing:
    """A measured latency in ms: the figure that is compared with the budget, its 95 % interval, and the dense reference of the same rounds."""

    ms: float
    dense_ms: float | None = None
    ci95: tuple[float, float] | None = None


class Journal:
    """Everything a search has paid for, one record a line, each synced to disk before the search goes on.

    A record is ``{"kind": ..., ...}``: ``note`` (a named value, such as the budget), ``ask`` (which candidates were proposed), ``timing`` (a latency), ``trial`` (a result, in order of completion),
    ``confirmed`` (a latency measured again at the end), ``ablation`` (the winner without one layer's pruning),
    ``loss`` and ``layers`` (a choice's estimates). Candidates are stored as positions in their slots. A last line that a kill cut short is dropped; damage elsewhere
    is an ArtifactError. The file is locked while it is open: a second search on the same state is a UsageError. Appending is safe from several threads.
    """

    def __init__(self, path: Path, space: Space):
        self.path, self.space = path, space
        self._lock = threading.Lock()
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - held open for the lock
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"Another search with the same configuration is running (it holds {path}).", "Wait for it, or stop it first.") from None
        except OSError as error:
            raise NpasError(f"Can't open the search's journal {path}: {error.strerror}.", "Check permissions, or set NPAS_STATE to another folder.") from error
        self.records = self._read()
        self._check_space()

    def append(self, kind: str, **values: Any) -> None:
        """Add one record and wait until it is on disk."""
        record = {"kind": kind} | values
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                self._file.write(line)
                os.fsync(self._file.fileno())
            except OSError as error:
                raise NpasError(
                    f"Can't write the search's journal {self.path}: {error.strerror}.", "Free some space and run the same command: it continues."
                ) from error
            self.records.append(record)

    def note(self, name: str, value: Any = None) -> Any:
        """The last value noted under ``name``, or None; with ``value``, note it."""
        if value is not None:
            self.append("note", name=name, value=value)
        return next((r["value"] for r in reversed(self.records) if r["kind"] == "note" and r["name"] == name), None)

    def add_timing(self, kind: str, choices: Choices, timing: Timing) -> None:
        """Record a latency: ``timing`` or ``confirmed``."""
        self.append(kind, at=self.space.encode(choices), ms=timing.ms, dense_ms=timing.dense_ms, ci95=timing.ci95)

    def timings(self, kind: str) -> dict[Choices, Timing]:
        """Latencies recorded so far; the last one of each candidate."""
        found = [r for r in tuple(self.records) if r["kind"] == kind]
        return {self.space.decode(r["at"]): Timing(r["ms"], r["dense_ms"], _pair(r["ci95"])) for r in found}

    def add_trial(self, trial: Trial) -> None:
        """Record a result."""
        self.append("trial", at=self.space.encode(trial.choices), **to_row(trial))

    def trial(self, record: dict[str, Any]) -> Trial:
        """The Trial of a record of kind ``trial``."""
        values = {name: record[name] for name in ("accuracy", "latency_ms", "state", "error", "dense_ms", "stopped")}
        curve = tuple((epochs, loss) for epochs, loss in record["curve"])
        return Trial(self.space.decode(record["at"]), ci95=_pair(record["ci95"]), curve=curve, **values)

    def close(self) -> None:
        """Close the file and let go of the lock, after a write that is on its way."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a kill cut the last line short
            self._file.truncate(len(whole))
        try:
            return list(_parse(whole))
        except ValueError as error:
            self.close()
            raise ArtifactError(f"The search's journal {self.path} is damaged: {error}.", "Delete it to start the search anew.") from None

    def _check_space(self) -> None:
        shape = [[len(slot) for slot in self.space.slots], [repr(slot) for slot in dict.fromkeys(self.space.slots)]]
        if self.note("space") is None:
            self.note("space", shape)
        elif self.note("space") != shape:
            self.close()
            raise ArtifactError(f"The search's journal {self.path} belongs to another search space.", "Delete it to start the search anew.")


def to_row(trial: Trial) -> dict[str, Any]:
    """What is known of a trial but its choices, as plain data."""
    return {
        "state": trial.state, "accuracy": trial.accuracy, "latency_ms": trial.latency_ms, "dense_ms": trial.dense_ms,
        "ci95": None if trial.ci95 is None else list(trial.ci95), "error": trial.error, "stopped": trial.stopped, "curve": [list(point) for point in trial.curve],
    }  # fmt: skip


def code_version(parts: Sequence[str] = CODE) -> str:
    """Digest of the sources (files or folders of stages/) that decide what a candidate is worth: a journal of other code is not continued."""
    stages = Path(__file__).parents[1]
    found = [path for part in parts for path in ((stages / part).rglob("*.*") if (stages / part).is_dir() else [stages / part])]
    files = sorted(path for path in found if path.suffix in (".py", ".c", ".h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def pareto(trials: Sequence[Trial]) -> list[bool]:
    """For each trial: is there none that is at least as accurate and at least as fast, and better in one? False without both figures."""
    points = [None if t.accuracy is None or t.latency_ms is None else (t.latency_ms, -t.accuracy) for t in trials]
    known = [p for p in points if p is not None]
    return [p is not None and not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in known) for p in points]


def _parse(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        record = json.loads(line)
        if not isinstance(record, dict) or "kind" not in record:
            raise ValueError("a line is no record")
        yield record


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])
