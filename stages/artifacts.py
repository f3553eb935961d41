"""Artifacts on disk: where they lie, their schemas, atomic writes, checked reads, and the key of resumable state. Imports errors and config only; torch inside functions.

Every path is relative to the project folder, the current directory. Every JSON document has a ``schema`` ("npas-scheme/1") and every checkpoint a ``format``; a reader checks it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.config import TARGETS
from stages.errors import ArtifactError, NpasError

SCHEMAS = {  # file name -> schema; a reader refuses any other version
    "probe/device.json": "npas-device/1",
    "pretrain/model.pt": "npas-model/1",
    "pretrain/metrics.json": "npas-metrics/1",
    "replace_ops/model.pt": "npas-model/1",
    "replace_ops/graph.json": "npas-graph/1",
    "replace_ops/metrics.json": "npas-metrics/1",
    "search_scheme/scheme.json": "npas-scheme/1",
    "search_scheme/trials.json": "npas-trials/1",
    "search_scheme/network.pt": "npas-model/1",
    "search_scheme/metrics.json": "npas-metrics/1",
    "search_pruner/weights.pt": "npas-weights/1",
    "search_pruner/metrics.json": "npas-metrics/1",
    "search_pruner/race.json": "npas-race/1",
    **{f"compile/{target}/manifest.json": "npas-manifest/1" for target in TARGETS},
    **{f"compile/{target}/metrics.json": "npas-metrics/1" for target in TARGETS},
    "bench/latency.json": "npas-bench/1",
    "bench/metrics.json": "npas-metrics/1",
    "lifelong/network.pt": "npas-lifelong/1",
    "lifelong/tasks.json": "npas-tasks/1",
}
COLUMNS = {  # tables that `dvc plots` draws -> the columns it needs; a writer may add others
    "pretrain/history.csv": ("epoch", "loss", "top1"),  # one row an epoch; top1 on the validation split, 0..1
    "replace_ops/history.csv": ("epoch", "loss", "top1"),
    "search_scheme/history.csv": ("trial", "accuracy", "latency_ms", "state", "best"),  # one row a trial; best = best feasible accuracy so far
    "search_pruner/race.csv": ("entry", "top1"),  # one row an entry of the race, e.g. "admm+distill", at its last epoch
    "search_pruner/history.csv": ("epoch", "loss", "top1"),  # the winner's training to the end
    "bench/layers.csv": ("layer", "kernel", "ms", "dense_ms"),  # one row a kernel of the pruned network; dense_ms of the same layer, empty if fused away
}
MAKER = {"probe": "probe", "pretrain": "pretrain", "replace_ops": "replace-ops", "search_scheme": "search-scheme", "search_pruner": "search-pruner", "compile": "compile", "bench": "bench", "export": "export", "lifelong": "lifelong --name"}


def _command(path: str) -> str:
    return f"npas {MAKER.get(path.split('/')[0], path)}"


def write_atomic(path: Path | str, write: Callable[[Path], None]) -> Path:
    """Let ``write(temporary)`` make the file, then move it into place: a reader sees the old file or the new one, also after kill -9.

    Never writes through a symbolic link (a link into DVC's cache would be corrupted). Raises NpasError on a full disk or missing permission; the old file stays.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise NpasError(f"Can't write {path}: {error.strerror or error}.", "Check free space and permissions of the folder; what was there before is unchanged.") from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, document: Mapping[str, Any]) -> Path:
    """Write ``document`` with its ``schema`` first. Numbers must be finite and plain: NaN and numpy scalars are errors here, not surprises there."""
    schema = SCHEMAS.get(str(path))
    content = ({"schema": schema} if schema else {}) | dict(document)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomic(path, write)


def read_json(path: str | Path) -> dict[str, Any]:
    """The document at ``path``, its schema checked. ArtifactError when it is missing, damaged or of another version."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist.", f"Make it with '{_command(str(path))}', or the whole pipeline with 'dvc repro'.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}.", f"Delete it and run '{_command(str(path))}' again.") from None
    except OSError as error:
        raise ArtifactError(f"Can't read {path}: {error.strerror}.", "Check the permissions of the file.") from None
    expected = SCHEMAS.get(str(path))
    if expected and document.get("schema") != expected:
        raise ArtifactError(f"{path} has schema {document.get('schema')!r}; this npas reads {expected!r}.", f"It was written by another version: run '{_command(str(path))}' again.")
    return document


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``rows`` as a table: the columns of COLUMNS[path] first, then others as they appear; None and absent values become empty cells.

    Raises KeyError when a column that `dvc plots` needs is in no row (an empty table is fine: header only).
    """
    needed = COLUMNS.get(str(path), ())
    found = {key for row in rows for key in row}
    if rows and not found.issuperset(needed):
        raise KeyError(f"{path} lacks the columns {sorted(set(needed) - found)}")
    columns = list(dict.fromkeys([*needed, *(key for row in rows for key in row)]))

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)

    return write_atomic(path, write)


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> Path:
    """torch.save of plain values and tensors with their ``format``, atomically."""
    import torch

    buffer = io.BytesIO()  # not straight to the file: torch reports a full disk as an error of its own zip writer
    torch.save({"format": SCHEMAS.get(str(path), "npas-checkpoint/1")} | dict(content), buffer)

    def write(temporary: Path) -> None:
        temporary.write_bytes(buffer.getbuffer())

    return write_atomic(path, write)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What save_checkpoint wrote, on the CPU, loaded with weights_only=True. ArtifactError when missing, damaged or of another version."""
    import torch

    expected = SCHEMAS.get(str(path), "npas-checkpoint/1")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist.", f"Make it with '{_command(str(path))}', or the whole pipeline with 'dvc repro'.") from None
    except PermissionError as error:
        raise ArtifactError(f"Can't read {path}: {error.strerror}.", "Check the permissions of the file.") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ArtifactError(f"{path} is not a readable checkpoint ({type(error).__name__}).", f"Delete it and run '{_command(str(path))}' again.") from None
    if not isinstance(content, dict) or content.get("format") != expected:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(f"{path} has format {found!r}; this npas reads {expected!r}.", f"It was written by another version: run '{_command(str(path))}' again.")
    return content


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """``value`` (dataclass, tuple, Path, numpy scalar) as JSON-ready plain data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def state_key(*parts: Any) -> str:
    """16 hex digits that change when any part does. A config section loses its "how long" fields first, so that raising trials or epochs continues a run."""

    def reduced(part: Any) -> Any:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            return {f.name: plain(getattr(part, f.name)) for f in dataclasses.fields(part) if not f.metadata.get("duration")}
        return plain(part)

    return hashlib.sha256(json.dumps([reduced(p) for p in parts], sort_keys=True).encode()).hexdigest()[:16]


def state_dir(stage: str, key: str) -> Path:
    """Folder for a stage's resumable state; git-ignored, outside DVC's reach. $NPAS_STATE moves it (dvc exp run --temp works in another folder)."""
    root = Path(os.environ.get("NPAS_STATE") or Path.cwd() / ".npas" / "state")
    folder = root / stage / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NpasError(f"Can't make the folder {folder}: {error.strerror}.", "Check permissions, or set NPAS_STATE to a folder that you may write to.") from error
    return folder


def cache_dir(name: str) -> Path:
    """Folder for caches that may be deleted at any time (compiled kernels): $NPAS_CACHE or the user's cache folder."""
    root = Path(os.environ.get("NPAS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npas")
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NpasError(f"Can't make the folder {folder}: {error.strerror}.", "Check permissions, or set NPAS_CACHE to a folder that you may write to.") from error
    return folder
