"""Statistics against numpy, hand values and simulation; the judgement against series made to be good or bad."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.devices.timing import drift, judge, speedup, stats

CORES = (1,)


def judged(samples, cpu=None, runs=100, cpus=CORES, pinned=CORES, observed=CORES, stable=True):
    return judge(samples, samples if cpu is None else cpu, runs, cpus, pinned, observed, stable)


def noisy(seed, count=100, level=1.0):
    generator = np.random.default_rng(seed)
    return level * np.exp(generator.normal(0, 0.08, count))


def test_stats_by_hand():
    found = stats([4.0, 1.0, 3.0, 2.0])
    assert found["mean"] == 2.5
    assert found["median"] == 2.5
    assert (found["min"], found["max"]) == (1.0, 4.0)
    assert found["std"] == pytest.approx(math.sqrt(5 / 3))
    assert found["cv"] == pytest.approx(math.sqrt(5 / 3) / 2.5)
    assert found["iqr"] == pytest.approx(1.5)  # 3.25 - 1.75 by linear interpolation
    assert found["p90"] == pytest.approx(3.7)
    assert found["p99"] == pytest.approx(3.97)


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=60))
def test_stats_agree_with_the_standard_library(samples):
    found = stats(samples)
    assert found["median"] == pytest.approx(statistics.median(samples))
    assert found["mean"] == pytest.approx(statistics.fmean(samples))
    assert found["std"] == pytest.approx(statistics.stdev(samples), abs=1e-9)
    low, high = found["ci95"]
    assert min(samples) <= low <= high <= max(samples)
    assert found == stats(samples)  # seeded


def test_one_sample_and_none():
    assert stats([2.0])["std"] == 0.0
    assert stats([2.0])["ci95"] == [2.0, 2.0]
    with pytest.raises(ValueError, match="no samples"):
        stats([])


def test_interval_of_the_median_covers_the_truth():
    """Of 120 series with median 1, the interval holds 1 in about 95 %."""
    hits = sum(low <= 1.0 <= high for low, high in (stats(noisy(seed))["ci95"] for seed in range(120)))
    assert 105 <= hits <= 120


def test_interval_of_the_speedup_covers_the_truth():
    """Both networks share the machine's slow wander; their true ratio is 2."""
    hits = 0
    for seed in range(120):
        wander = 1 + 0.3 * np.sin(np.linspace(0, 9, 100) + seed)
        low, high = speedup(2.0 * wander * noisy(seed), wander * noisy(seed + 1000))["ci95"]
        hits += low <= 2.0 <= high
    assert 105 <= hits <= 120


def test_speedup_by_hand():
    assert speedup([4.0, 6.0, 8.0], [2.0, 3.0, 4.0]) == {"ratio": 2.0, "ci95": [pytest.approx(1.0, abs=1.0), pytest.approx(3.0, abs=1.0)]}
    assert speedup([4.0] * 9, [2.0] * 9) == {"ratio": 2.0, "ci95": [2.0, 2.0]}
    with pytest.raises(ValueError, match="pairs"):
        speedup([1.0, 2.0], [1.0])


def test_long_series_stay_in_memory():
    assert stats(noisy(0, 200_000))["median"] == pytest.approx(1.0, abs=0.01)


def test_drift_by_hand():
    series = [1.0] * 20 + [1.5] * 60 + [1.2] * 20
    assert drift(series) == {"ratio": pytest.approx(1.2), "ci95": [pytest.approx(1.2)] * 2}
    with pytest.raises(ValueError, match="five samples"):
        drift([1.0] * 4)


def test_a_steady_measurement_is_valid():
    assert judged([noisy(1), noisy(2, level=2)]) == (True, ())


def test_false_alarms_are_rare_on_a_noisy_machine():
    """8 % scatter, and a common wander of 30 %: what an idle pair of networks looks like here must pass."""
    wander = [1 + 0.3 * np.sin(np.linspace(0, 9, 100) + seed) for seed in range(100)]
    valid = sum(judged([w * noisy(seed), w * noisy(seed + 500, level=2)])[0] for seed, w in enumerate(wander))
    assert valid >= 98


def test_throttling_of_one_network_is_invalid():
    slower = np.linspace(1.0, 1.3, 100)
    valid, reasons = judged([noisy(1), slower * noisy(2)])
    assert not valid
    assert "ratio to network 1" in reasons[-1]


def test_slowing_down_together_is_a_warning_only():
    slower = np.linspace(1.0, 1.5, 100)
    valid, reasons = judged([slower * noisy(1), slower * noisy(2)])
    assert valid
    assert [r.split(";")[0] for r in reasons] == ["warning: the machine slowed down"]


def test_without_a_reference_slowing_down_is_invalid():
    valid, reasons = judged([np.linspace(1.0, 1.5, 100) * noisy(1)])
    assert not valid
    assert reasons[0].startswith("drift: the last fifth")
    valid, reasons = judged([np.linspace(1.0, 1.5, 100) * noisy(1)], cpu=[noisy(1)])  # only waiting for the core grew
    assert valid
    assert all(r.startswith("warning:") for r in reasons)


def test_too_few_runs():
    assert judged([noisy(1, 40)], runs=100)[1] == ("too few runs: 40 of 100",)
    assert judged([[1.0, 1.0]], runs=2)[1] == ("too few runs: 2 of 3",)
    assert judged([[1.0] * 3], runs=3) == (True, ())
    assert judged([[]], runs=10)[1] == ("too few runs: 0 of 10",)


def test_affinity_not_honoured():
    assert not judged([noisy(1)], pinned=(0, 1))[0]
    assert judged([noisy(1)], observed=(1, 0, 1))[1] == ("affinity not honoured: asked for cores 1, got 1, ran on 0,1",)
    assert judged([noisy(1)], cpus=(0, 1), pinned=(1, 0), observed=(1,)) == (True, ())


def test_changed_outputs_are_invalid():
    assert judged([noisy(1)], stable=False)[1] == ("the outputs changed between the first run and the last",)


def test_a_busy_core_is_a_warning():
    wall, cpu = noisy(1), noisy(1)
    wall[::8] *= 6  # 13 of 100 runs waited
    valid, reasons = judged([wall], cpu=[cpu])
    assert valid
    assert reasons == ("warning: other programs took the core away during 13 % of the runs",)
    wall = noisy(1)
    wall[::33] *= 6
    assert judged([wall], cpu=[cpu]) == (True, ())
