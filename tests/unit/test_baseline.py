"""The comparison with an earlier bench against simulated ones, and the JUnit report read back by the standard library."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.devices.baseline import change, compare
from stages.devices.junit import report
from stages.devices.timing import stats
from stages.errors import DeviceLost, InvalidMeasurement, TooSlow, UsageError

DEVICE = {"kind": "phone", "model": "M", "soc": "S", "abi": "arm64-v8a", "emulated": False}


def bench(seed, pruned, dense=2.0, count=100, mood=1.0, **changes):
    """A record whose rounds share the machine's mood."""
    generator = np.random.default_rng(seed)
    wander = mood * np.exp(np.cumsum(generator.normal(0, 0.01, count)))
    samples, reference = (list(level * wander * np.exp(generator.normal(0, 0.03, count))) for level in (pruned, dense))
    dense_part = {"samples_ms": reference, "stats": stats(reference)}
    return {
        "schema": "npas-bench/1", "device": DEVICE, "samples_ms": samples, "stats": stats(samples), "dense": dense_part, "valid": True, "reasons": [], "speedup": {"ratio": 2.0},
    } | changes  # fmt: skip


def test_by_hand():
    assert change(([3.0] * 9, [4.0] * 9), ([1.0] * 9, [4.0] * 9)) == {"ratio": 3.0, "ci95": [3.0, 3.0]}
    with pytest.raises(ValueError, match="pairs"):
        change(([1.0], [1.0, 2.0]), ([1.0], [1.0]))


def test_an_unchanged_network_is_rarely_called_slower_and_a_slower_one_nearly_always():
    pairs = [(bench(seed, 1.0, mood=1.5), bench(seed + 1000, 1.0)) for seed in range(60)]  # the whole machine is slower by half: not the network's fault
    assert sum(compare(now, before, 0.02)["slower"] for now, before in pairs) == 0
    worse = [compare(bench(seed, 1.08), bench(seed + 1000, 1.0), 0.02)["slower"] for seed in range(60)]
    assert sum(worse) >= 57


def test_the_interval_covers_the_truth():
    intervals = [compare(bench(seed, 1.1), bench(seed + 1000, 1.0), 0.0)["ci95"] for seed in range(100)]
    assert sum(low <= 1.1 <= high for low, high in intervals) >= 88


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=30), st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_cancel(samples, a, b):
    """Slowing pruned and dense alike changes nothing, and nobody is slower than himself."""
    x = np.array(samples)
    found = change((list(a * x), list(a * x[::-1])), (list(b * x), list(b * x[::-1])))
    assert found["ratio"] == pytest.approx(1.0)
    assert found["ci95"][0] <= 1.0001 and found["ci95"][1] >= 0.9999


def test_only_an_equal_and_valid_device_is_compared():
    other = bench(1, 1.0, device=DEVICE | {"soc": "T"})
    with pytest.raises(UsageError, match="no measurement on such a device"):
        compare(bench(2, 1.0), other, 0.0)
    assert compare(bench(2, 1.0), other | {"others": [bench(3, 1.0)]}, 0.02)["slower"] is False
    with pytest.raises(UsageError, match="not to be trusted"):
        compare(bench(2, 1.0), bench(1, 1.0, valid=False, reasons=["drift"]), 0.0)
    with pytest.raises(UsageError, match="no record"):
        compare(bench(2, 1.0), {"schema": "other"}, 0.0)


def outcome(text):
    """{device: {check: outcome}}"""
    root = ElementTree.fromstring(text.encode())
    return {suite.get("name"): {case.get("name"): (case[0].tag if len(case) else "passed") for case in suite.iter("testcase")} for suite in root}


def test_junit_has_one_case_per_device_and_check():
    passed = {"measurement": "passed", "trust": "passed", "speed": "passed"}
    assert outcome(report([bench(1, 1.0)], [None], ["host"])) == {"host": passed}
    assert outcome(report([bench(1, 1.0)], [TooSlow("a < b & c", "hint")], ["host"])) == {"host": passed | {"speed": "failure"}}
    assert outcome(report([bench(1, 1.0)], [InvalidMeasurement("hot")], ["host"])) == {"host": passed | {"trust": "failure", "speed": "skipped"}}
    lost = outcome(report([bench(1, 1.0)], [None, DeviceLost("gone")], ["host", "adb:A", "adb:B"]))
    skipped = dict.fromkeys(passed, "skipped")
    assert lost == {"host": passed, "adb:A": skipped | {"measurement": "error"}, "adb:B": skipped}
    suites = list(ElementTree.fromstring(report([], [DeviceLost("gone")], ["adb:A"]).encode()))
    assert (suites[0].get("tests"), suites[0].get("errors"), suites[0].get("skipped"), suites[0].get("failures")) == ("3", "1", "2", "0")
