"""An append-only file of JSON lines that survives kill -9. Imports errors only."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError, NpasError, UsageError

CODE = ("pruners", "schemes", "graph", "tasks")


class Journal:
    """Rows of finished work, each on disk before the work goes on; a last line that a kill cut short is dropped.

    Damage elsewhere is an ArtifactError. The file is locked while it is open: a second run on the same state is a UsageError.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - held open for the lock
        except OSError as error:
            raise NpasError(f"Can't open the journal {path}: {error.strerror}.", "Check permissions, or set NPAS_STATE to another folder.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"Another run with the same configuration is at work (it holds {path}).", "Wait for it, or stop it first.") from None
        self.rows = self._read()

    def append(self, row: dict[str, Any]) -> None:
        """Add one row and wait until it is on disk."""
        try:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise NpasError(f"Can't write the journal {self.path}: {error.strerror}.", "Free some space and run the same command: it continues.") from error
        self.rows.append(row)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            self._file.close()
            raise ArtifactError(f"The journal {self.path} is damaged: {error}.", "Delete it to start anew.") from None


def code_version(*more: str) -> str:
    """Digest of the sources that decide how an entry ends, and of the parts of stages/ in ``more``: a journal of other code is not continued."""
    stages = Path(__file__).parents[1]
    files = sorted(path for part in (*CODE, *more) for path in (stages / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
