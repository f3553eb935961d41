"""Which cores a measurement is pinned to: clusters by their highest frequency, or a mask. Imports errors only."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stages.errors import UsageError


def choose_cores(wanted: str, cpus: Sequence[int], threads: int, clusters: Sequence[Mapping[str, Any]], allowed: Collection[int]) -> tuple[int, ...]:
    """The cores to pin to: ``cpus`` where given, else the cluster ``wanted``, else the last ``threads`` of ``allowed``.

    ``clusters`` are ``{"cores": [...], "max_khz": ...}``, fastest first. "big" and "little" mean the ``threads`` last cores of the fastest and of the slowest cluster (and of the
    next ones, where it has too few); "0xf0" is the whole mask: cores 4 to 7. UsageError for cores that may not be used, and for fewer cores than threads.
    """
    chosen = tuple(cpus) or (_cluster(wanted, threads, clusters, allowed) if wanted else tuple(sorted(allowed)[-threads:]))
    if not set(chosen) <= set(allowed):
        raise UsageError(f"npas may not use the cores {_list(chosen)}.", f"Choose from {_list(allowed)}.")
    if len(set(chosen)) < threads:
        raise UsageError(f"{threads} threads need as many cores; there are {len(set(chosen))}.", "Give fewer threads, or more cores.")
    return chosen


def _cluster(wanted: str, threads: int, clusters: Sequence[Mapping[str, Any]], allowed: Collection[int]) -> tuple[int, ...]:
    if re.fullmatch("0x[0-9a-fA-F]{1,16}", wanted):
        mask = int(wanted, 16)
        return tuple(core for core in range(mask.bit_length()) if mask >> core & 1)
    if wanted not in ("big", "little"):
        raise UsageError(f"Unknown cores '{wanted}'.", "Known: big, little, or a mask such as 0xf0 (cores 4 to 7).")
    found: list[int] = []
    for cluster in clusters if wanted == "big" else reversed(clusters):
        found += sorted(set(cluster["cores"]) & set(allowed), reverse=True)
        if len(found) >= threads:
            break
    return tuple(sorted(found[:threads]))


def _list(cores: Collection[int]) -> str:
    return ",".join(str(core) for core in sorted(set(cores))) or "none"
