"""Whether a network has become slower since an earlier bench: a test, not a threshold. Imports numpy, timing and errors only.

Compared is what a machine's mood doesn't touch: the ratio of the pruned network's median to that of the dense one, timed in the same rounds. Its change since the baseline has a bootstrap
interval (rounds are drawn in pairs, each bench for itself); only an interval that lies wholly beyond the margin is a regression. The margin stands for what differs between two starts
of the same program and no interval of one start shows: addresses, page placement, temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.devices.timing import RESAMPLES
from stages.errors import UsageError

_SAME = ("kind", "model", "soc", "abi", "emulated")  # equal phones are interchangeable


def change(now: tuple[Sequence[float], Sequence[float]], before: tuple[Sequence[float], Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """How many times slower the first network of ``now`` has become relative to its second, since ``before``: ratio and ci95. Each pair holds the samples of the same rounds.

    >>> change(([2.0] * 9, [4.0] * 9), ([1.0] * 9, [4.0] * 9))["ratio"]
    2.0
    """
    generator = np.random.default_rng(seed)
    (value, values), (base, bases) = (_ratios(pair, generator) for pair in (now, before))
    return {"ratio": value / base, "ci95": [float(v) for v in np.percentile(values / bases, [2.5, 97.5])]}


def _ratios(pair: tuple[Sequence[float], Sequence[float]], generator: np.random.Generator) -> tuple[float, np.ndarray]:
    a, b = (np.asarray(samples, dtype=np.float64) for samples in pair)
    if a.shape != b.shape or a.size == 0:
        raise ValueError("the samples of interleaved rounds come in pairs")
    drawn = generator.integers(a.size, size=(RESAMPLES, a.size))
    return float(np.median(a) / np.median(b)), np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)


def compare(record: Mapping[str, Any], baseline: Mapping[str, Any], margin: float) -> dict[str, Any]:
    """The change of ``record`` (npas-bench/1) since the record of an equal device in ``baseline``, and whether it is a regression. UsageError when there is none, or it isn't valid."""
    if baseline.get("schema") != "npas-bench/1":
        raise UsageError("The baseline is no record of npas bench.", "Give the bench/latency.json of an earlier run.")
    device = record["device"]
    candidates = [r for r in (baseline, *baseline.get("others", ())) if all(r["device"].get(key) == device.get(key) for key in _SAME)]
    if not candidates:
        raise UsageError(f"The baseline holds no measurement on such a device ({device['soc']}).", "Compare with a bench of the same kind of device.")
    earlier = candidates[0]
    if not earlier["valid"]:
        raise UsageError(f"The baseline is not to be trusted itself: {'; '.join(earlier['reasons'])}.", "Measure it again.")
    found = change((record["samples_ms"], record["dense"]["samples_ms"]), (earlier["samples_ms"], earlier["dense"]["samples_ms"]))
    return found | {"margin": margin, "median_before": earlier["stats"]["median"], "slower": found["ci95"][0] > 1 + margin}
