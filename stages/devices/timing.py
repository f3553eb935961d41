"""How a latency is measured and what may be said of it: the protocol, the statistics, the judgement. Imports numpy only.

A shared computer is noisy in ways that a phone isn't: other programs come and go, so the absolute level of the samples wanders although nothing is
wrong with the measurement. Therefore all networks are timed in the same rounds, and what is judged is the *ratio* of two networks: both drift together
when the machine gets busier, and only a network that changes against its reference (a throttled vector unit, a cache that fills) makes the ratio drift.
A single network has no reference; its processor time, which waiting for the core doesn't raise, is judged instead. A drift counts when its 95 % bootstrap interval lies wholly beyond 5 %, the limit of the phone protocol; a drift of all networks together, and a machine that
took much time away, are reported as warnings and leave the measurement valid. Nothing is ever removed from the samples.

A phone has no other users: there the absolute level counts too (``strict``), and a clock that falls or a thermal status that rises makes the measurement invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 2000
DRIFT_LIMIT = 1.05  # median(last 20 %) / median(first 20 %)
WAITED = 1.25  # a run whose wall time is more than this many times its processor time has waited for the core
BUSY_SHARE = 0.05  # so many runs may, before it is worth a warning
FEWEST_RUNS = 3
FEWEST_FOR_DRIFT = 25  # five samples in each fifth


@dataclass(frozen=True)
class TimingProtocol:
    """How to time: ``runs`` rounds of all networks after ``warmup`` runs and ``warmup_seconds``, whichever is longer.

    ``cpus`` are the cores to pin to (empty: the last ``threads`` cores that this process may use). In each round every network runs ``settle`` times untimed
    before its timed run, so that it meets its own caches, as in a program that runs one network over and over. ``timeout_seconds`` is the longest silence
    of the runner; each run of the network ends one. ``cluster`` chooses the cores where ``cpus`` doesn't (clusters.py). ``profile_runs`` times each kernel so often, after the
    rounds. ``cool_seconds`` is how long a hot phone is waited for.
    """

    runs: int = 100
    warmup: int = 10
    warmup_seconds: float = 1.0
    threads: int = 1
    cpus: tuple[int, ...] = ()
    settle: int = 1
    timeout_seconds: float = 120.0
    cluster: str = ""
    profile_runs: int = 0
    cool_seconds: float = 300.0


@dataclass(frozen=True)
class Conditions:
    """What surrounded a measurement. None is what the device doesn't tell.

    ``battery`` is ``{"level": percent, "charging": bool}``; ``thermal`` ``{"before", "after", "max_status", "trace"}`` with Android's thermal status (0 none .. 6 shutdown) and
    ``[seconds, status, degrees]`` rows; ``link`` ``{"losses", "reconnects"}`` of the cable or network.
    """

    kernel: str | None = None
    sdk: int | None = None
    governor: str | None = None
    battery: Mapping[str, Any] | None = None
    thermal: Mapping[str, Any] = field(default_factory=lambda: {"before": None, "after": None, "max_status": None, "trace": []})
    link: Mapping[str, int] = field(default_factory=lambda: {"losses": 0, "reconnects": 0})


@dataclass(frozen=True)
class Measurement:
    """What one session on a device gave, for each network in the order that was asked; times in ms.

    ``samples_ms[k][r]`` is the wall time of network k in round r, ``cpu_ms`` the processor time of the same run (less than the wall time where other programs
    took the core; more with several threads). ``outputs[k]`` are the arrays of the first run, before any timing. ``init_ms`` is loading and preparing the
    workspace, ``first_ms`` the first run. ``frequency_khz`` is the trace of the cores' clocks, empty where it can't be read. ``reasons`` says why the
    measurement isn't valid; those that begin with "warning:" leave it valid. ``kernel_ms[k]`` are the median ms of each entry of the manifest's kernels, empty where nothing was profiled.
    """

    samples_ms: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[np.ndarray, ...], ...]
    init_ms: tuple[float, ...]
    first_ms: tuple[float, ...]
    cpu_ms: tuple[tuple[float, ...], ...]
    cpus: tuple[int, ...]
    frequency_khz: tuple[int, ...]
    valid: bool
    reasons: tuple[str, ...]
    kernel_ms: tuple[tuple[float, ...], ...] = ()
    manifests: tuple[Mapping[str, Any], ...] = ()
    conditions: Conditions = Conditions()


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], count: int, seed: int) -> list[float]:
    """95 % percentile interval of ``statistic(indices)``, where ``indices`` (resamples, count) are rounds drawn with replacement."""
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // count)  # bounds the memory for long series
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    values = np.concatenate([statistic(generator.integers(count, size=(size, count))) for size in sizes])
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def stats(samples: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Mean, median, p90, p99, min, max, std (n - 1), iqr, cv, and ci95, the bootstrap interval of the median; all in the samples' unit, cv without one.

    >>> stats([1.0, 2.0, 3.0])["median"]
    2.0
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no samples")
    p25, median, p75, p90, p99 = np.percentile(x, [25, 50, 75, 90, 99])
    std = x.std(ddof=1) if x.size > 1 else 0.0
    values = {"mean": x.mean(), "median": median, "p90": p90, "p99": p99, "min": x.min(), "max": x.max(), "std": std, "iqr": p75 - p25, "cv": std / x.mean()}
    return {name: float(v) for name, v in values.items()} | {"ci95": _bootstrap(lambda i: np.median(x[i], axis=1), x.size, seed)}


def speedup(dense: Sequence[float], pruned: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """How many times faster ``pruned`` is: the ratio of the medians, and its interval over paired rounds (a resample draws whole rounds)."""
    a, b = np.asarray(dense, dtype=np.float64), np.asarray(pruned, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError("the samples of interleaved rounds come in pairs")
    return {"ratio": float(np.median(a) / np.median(b)), "ci95": _bootstrap(lambda i: np.median(a[i], axis=1) / np.median(b[i], axis=1), a.size, seed)}


def drift(series: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Median of the last fifth over median of the first fifth, with its interval. At least five samples."""
    x = np.asarray(series, dtype=np.float64)
    fifth = x.size // 5
    if not fifth:
        raise ValueError("drift needs at least five samples")
    head, tail = x[:fifth], x[-fifth:]
    generator = np.random.default_rng(seed)
    heads, tails = (np.median(part[generator.integers(fifth, size=(RESAMPLES, fifth))], axis=1) for part in (head, tail))
    return {"ratio": float(np.median(tail) / np.median(head)), "ci95": [float(v) for v in np.percentile(tails / heads, [2.5, 97.5])]}


def _drifts(series: np.ndarray, both: bool) -> float | None:
    """The drift of ``series`` when it is surely beyond the limit (upward; also downward if ``both``), else None."""
    found = drift(series)
    low, high = found["ci95"]
    return found["ratio"] if low > DRIFT_LIMIT or (both and high < 1 / DRIFT_LIMIT) else None


def _drift_reasons(samples: np.ndarray, cpu: np.ndarray, strict: bool) -> list[str]:
    """``samples`` and ``cpu`` are (networks, rounds). The first network is judged against each other one; a single one by its processor time."""
    if samples.shape[1] < FEWEST_FOR_DRIFT:
        return []
    absolute = _drifts(samples[0], both=False)
    reasons = [f"{'drift' if strict else 'warning'}: the machine slowed down; the last fifth of the runs took {absolute:.2f} times as long as the first"] if absolute else []
    if len(samples) == 1:
        alone = _drifts(cpu[0], both=False)
        return [f"drift: the last fifth of the runs took {alone:.2f} times the processor time of the first"] if alone else reasons
    found = [_drifts(samples[0] / other, both=True) for other in samples[1:]]
    return reasons + [f"drift: the ratio to network {k} changed by {value:.2f} times from the first fifth of the rounds to the last" for k, value in enumerate(found, 1) if value]


def judge(
    samples_ms: Sequence[Sequence[float]],
    cpu_ms: Sequence[Sequence[float]],
    runs: int,
    cpus: Sequence[int],
    pinned: Sequence[int],
    observed: Sequence[int],
    stable: bool,
    strict: bool = False,
    clocks: Mapping[int, Sequence[int]] = {},
    thermal: tuple[int | None, int | None] = (None, None),
) -> tuple[bool, tuple[str, ...]]:
    """Whether a measurement may be trusted, and the reasons; see the head of this file for the rules.

    ``runs`` were asked for on the cores ``cpus``; ``pinned`` is the mask that the system reported back, ``observed`` the cores that runs ended on;
    ``stable`` says whether the last run gave the same outputs as the first. ``strict`` is for a device of which this measurement is the only user; ``clocks`` is each core's
    trace in kHz, ``thermal`` its status before and the highest one since.
    """
    samples, cpu = np.asarray(samples_ms, dtype=np.float64), np.asarray(cpu_ms, dtype=np.float64)
    count = samples.shape[1]
    reasons = []
    if count < max(runs, FEWEST_RUNS):
        reasons.append(f"too few runs: {count} of {max(runs, FEWEST_RUNS)}")
    if set(pinned) != set(cpus) or not set(observed) <= set(cpus):
        reasons.append(f"affinity not honoured: asked for cores {_list(cpus)}, got {_list(pinned)}, ran on {_list(observed)}")
    if not stable:
        reasons.append("the outputs changed between the first run and the last")
    if thermal[0] is not None and thermal[1] is not None and thermal[1] > thermal[0]:
        reasons.append(f"too hot: the thermal status rose from {thermal[0]} to {thermal[1]}")
    if count:
        reasons += _drift_reasons(samples, cpu, strict) + (_clock_reasons(clocks) if strict else [])
        waited = float(np.mean(samples > WAITED * cpu))
        if waited > BUSY_SHARE:
            reasons.append(f"warning: other programs took the core away during {100 * waited:.0f} % of the runs")
    return all(r.startswith("warning:") for r in reasons), tuple(reasons)


def _clock_reasons(clocks: Mapping[int, Sequence[int]]) -> list[str]:
    """A core whose median clock in the last fifth of its trace is below that of the first fifth by more than the limit of drift."""
    fallen = []
    for core, trace in clocks.items():
        fifth = max(1, len(trace) // 5)
        before, after = float(np.median(trace[:fifth])), float(np.median(trace[-fifth:]))
        if before > DRIFT_LIMIT * after:
            fallen.append(f"the clock of core {core} fell from {before / 1e3:.0f} to {after / 1e3:.0f} MHz")
    return fallen


def _list(cpus: Sequence[int]) -> str:
    return ",".join(str(c) for c in sorted(set(cpus))) or "none"
