"""The npas-bench/1 record: correctness, layers by name, the judgement."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stages.devices import Measurement, TimingProtocol
from stages.devices.record import Compiled, build, correctness, judge, layer_rows, metrics
from stages.errors import InvalidMeasurement, TooSlow, WrongOutput

ONE = np.array([[1.0, -4.0]], dtype=np.float32)


def kernels(*pairs):
    return {"kernels": [{"layer": layer, "kernel": kernel} for layer, kernel in pairs]}


def test_correctness_is_relative_to_the_largest_output():
    found = correctness("pruned", [ONE + np.float32(0.003)], [ONE], 1e-3)
    assert found["max_abs_err"] == pytest.approx(0.003, rel=1e-3)
    assert found["max_abs_output"] == 4.0
    with pytest.raises(WrongOutput, match="largest error is 0.005"):
        correctness("pruned", [ONE + np.float32(0.005)], [ONE], 1e-3)


@pytest.mark.parametrize("outputs", [[], [ONE, ONE], [ONE.T], [np.full_like(ONE, np.nan)], [ONE * [1, np.inf]]])
def test_nan_and_other_shapes_are_wrong(outputs):
    with pytest.raises(WrongOutput):
        correctness("dense", outputs, [ONE], 1e-3)


def test_all_zero_outputs_must_be_exact():
    assert correctness("pruned", [ONE * 0], [ONE * 0], 1e-3)["max_abs_err"] == 0
    with pytest.raises(WrongOutput):
        correctness("pruned", [ONE * 0 + np.float32(1e-9)], [ONE * 0], 1e-3)


def test_layers_are_matched_by_name_and_kept_in_network_order():
    pruned = Compiled("", kernels(("a", "punched"), ("b", "pad"), ("b", "direct"), ("d", "fc")), [1.0, 0.25, 0.5, 2.0])
    dense = Compiled("", kernels(("a", "winograd"), ("b", "direct"), ("c", "add"), ("d", "fc")), [3.0, 0.5, 0.125, 4.0])
    assert layer_rows(pruned, dense) == [
        {"name": "a", "kernel": "punched", "ms": 1.0, "dense_kernel": "winograd", "dense_ms": 3.0},
        {"name": "b", "kernel": "pad + direct", "ms": 0.75, "dense_kernel": "direct", "dense_ms": 0.5},
        {"name": "c", "kernel": None, "ms": None, "dense_kernel": "add", "dense_ms": 0.125},
        {"name": "d", "kernel": "fc", "ms": 2.0, "dense_kernel": "fc", "dense_ms": 4.0},
    ]
    assert [r["name"] for r in layer_rows(Compiled("", kernels(("b", "x")), [1.0]), dense)] == ["a", "b", "c", "d"]


def made(tmp_path, valid=True, reasons=()):
    paths = [tmp_path / f"{k}.so" for k in range(3)]
    for path in paths:
        path.write_bytes(b"elf")
    manifest = kernels(("a", "punched")) | {"target": {"triple": "x86_64", "mcpu": "znver4", "threads": 1}, "tvm": "0.27", "macs": 5, "inputs": [{"shape": [1, 4]}]}
    samples = ((1.0,) * 10, (2.0,) * 10, (3.0,) * 10)
    measured = Measurement(samples, (), (0.1,) * 3, (0.2,) * 3, samples, (1,), (), valid, tuple(reasons))
    check = {"max_abs_err": 1e-6, "max_abs_output": 3.0, "tolerance": 1e-3}
    return build("net", [Compiled(p, manifest, [0.5]) for p in paths], measured, TimingProtocol(runs=10), {"kind": "host"}, [check] * 3, "ab")


def test_record_has_every_field_of_the_schema(tmp_path):
    record = made(tmp_path)
    fields = "model target device protocol samples_ms dense stats speedup layers init_ms first_ms thermal correctness valid reasons link"
    assert set(fields.split()) <= set(record)
    assert record["stats"]["median"] == 1.0
    assert record["speedup"] == {"ratio": 2.0, "ci95": [2.0, 2.0]}
    assert record["speedup_original"]["ratio"] == 3.0
    assert set(record["dense"]) >= {"samples_ms", "stats"}
    json.dumps(record, allow_nan=False)
    assert metrics(record) == {
        "latency_ms": 1.0, "dense_ms": 2.0, "original_ms": 3.0, "p90_ms": 1.0, "speedup": 2.0, "speedup_original": 3.0, "max_abs_err": 1e-6, "valid": True,
    }  # fmt: skip


def test_judgement(tmp_path):
    assert judge(made(tmp_path), None) is None
    assert judge(made(tmp_path), 1.0) is None
    slow = judge(made(tmp_path), 0.9)
    assert isinstance(slow, TooSlow) and "1.000 ms, above the 0.9 ms" in slow.message
    bad = judge(made(tmp_path, False, ["warning: a busy core", "too few runs: 3 of 10"]), 0.9)
    assert isinstance(bad, InvalidMeasurement) and bad.message.endswith("not to be trusted: too few runs: 3 of 10.")
