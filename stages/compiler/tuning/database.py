"""Measured choices, kept: a journal per device in the cache folder, and the defaults that npas brings along. Imports no TVM.

A journal is a text of JSON lines to which lines are only ever appended: ``point`` is one candidate's measurement, ``verdict`` the best candidate of a signature whose search is complete. What was
interrupted has points without a verdict, and goes on from there. ``planes`` is the fastest layout of a whole network: its resolutions that run on planes. Two processes may append at the same time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.artifacts import cache_dir
from stages.compiler.target import Target
from stages.devices.probe import host_identity

GENERATION = 1  # raise it when the kernels change so much that what was measured before misleads
SCHEMA = "npas-tuning/1"
MEASURED, SHIPPED, MODEL, ASKED = "measured here", "shipped", "model", "asked for"
_DEFAULTS = Path(__file__).parent / "shipped"
# Whose shipped measurements a processor uses. AVX2 is alike on AMD and Intel: two multiply-adds a cycle, 16 registers. AVX-512 isn't: Zen 4 runs half vectors at full speed, others don't.
_LIKE = {"znver4": "avx512-znver4", "znver3": "avx2-znver3", "haswell": "avx2-znver3"}

Plain = Mapping[str, Any]
"""A choice as the journal writes it: {"rule": "gather", "lanes": 16, ...}."""


@dataclass(frozen=True)
class Content:
    """What a journal says: choices by signature, the measured points of each signature as {choice's text: cost relative to the model's choice}, and the resolutions on planes by network."""

    verdicts: Mapping[str, Plain] = field(default_factory=dict)
    points: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    planes: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)


def path(target: Target) -> Path:
    """The journal of this machine for ``target``; another processor, code generation or generation of kernels has another one."""
    return cache_dir("tuning") / f"{target.isa}-{target.mcpu}-{_device_key(target)}.jsonl"


def find(signature: str, target: Target) -> tuple[Plain, str] | None:
    """(the choice for ``signature``, "measured here" or "shipped"), None when nobody measured it."""
    for file, where in _sources(target):
        found = read(file).verdicts.get(signature)
        if found is not None:
            return found, where
    return None


def find_planes(network: str, target: Target) -> tuple[tuple[tuple[int, int], ...], str] | None:
    """(the resolutions of ``network`` on planes, "measured here" or "shipped"), None when nobody measured it."""
    for file, where in _sources(target):
        found = read(file).planes.get(network)
        if found is not None:
            return found, where
    return None


def _sources(target: Target) -> tuple[tuple[Path, str], tuple[Path, str]]:
    return (path(target), MEASURED), (shipped_path(target), SHIPPED)


def shipped_path(target: Target) -> Path:
    """The defaults for ``target``: verdicts measured on a processor of its kind. No file where nobody has measured one: the models choose."""
    return _DEFAULTS / f"{_LIKE.get(target.mcpu, f'{target.isa}-{target.mcpu}')}.jsonl"


def key(choice: Plain) -> str:
    """A choice as text: equal for equal choices."""
    return json.dumps(choice, sort_keys=True)


def plain(rule: str, choice: Any) -> Plain:
    """A rule's Choice as the journal writes it."""
    return {"rule": rule, **dataclasses.asdict(choice)}


def read(file: Path) -> Content:
    """The Content of a journal, empty when there is none. A line that was cut off by the end of its writer is left out."""
    try:
        state = file.stat()
    except OSError:
        return Content()
    return _read(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _read(file: Path, _time: int, _size: int) -> Content:
    verdicts: dict[str, Plain] = {}
    points: dict[str, dict[str, float]] = {}
    planes: dict[str, tuple[tuple[int, int], ...]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if row["kind"] == "verdict":
                verdicts[row["signature"]] = row["choice"]
            elif row["kind"] == "point":
                points.setdefault(row["signature"], {})[key(row["choice"])] = float(row["cost"])
            elif row["kind"] == "planes":
                planes[row["network"]] = tuple((int(height), int(width)) for height, width in row["resolutions"])
        except (ValueError, KeyError, TypeError):
            continue
    return Content(verdicts, points, planes)


def append(file: Path, *rows: Mapping[str, Any]) -> None:
    """Add lines at once: one write call, so that neither a kill nor another writer tears them apart from the lines before."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # a line that was cut off
            text = "\n" + text
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def start(file: Path, target: Target) -> None:
    """Write the first line of a new journal: for whom it holds."""
    if not file.exists():
        append(file, {"kind": "device", "schema": SCHEMA, "generation": GENERATION, **_device(target)})


@lru_cache(maxsize=8)
def _device(target: Target) -> Mapping[str, str]:
    return {"triple": target.triple, "mcpu": target.mcpu, "isa": target.isa, "processor": host_identity()["soc"]}


@lru_cache(maxsize=8)
def _device_key(target: Target) -> str:
    return hashlib.sha256(repr((GENERATION, SCHEMA, sorted(_device(target).items()))).encode()).hexdigest()[:12]
