"""A run's artifacts in the shapes that the stages write, with invented figures: what the report is tested and looked at with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stages.artifacts import SCHEMAS
from stages.devices import speedup, stats
from stages.schemes import LayerScheme

KINDS = [("none", 1.0, 0), ("filter", 2.0, 0), ("block-punched", 3.0, 8), ("block-punched", 7.0, 16), ("pattern", 2.5, 8), ("block-punched", 10.0, 32)]
RETYPED = (1, 3)  # layers that became depthwise separable; the second is pruned too


def conv(i, last):
    if last:
        attrs = {"in_features": 128, "out_features": 10}
        return {"name": "head.fc", "op": "linear", "inputs": [], "shape": [1, 10], "attrs": attrs, "params": {}, "module": "head.fc", "target": "", "macs": 1280}
    name = f"backbone.features.stages.{i // 4}.layers.{i % 4}.0"
    attrs = {"in_channels": 32, "out_channels": 64, "kernel": [3, 3] if i % 2 else [1, 1], "stride": [2 if i % 5 == 0 else 1] * 2, "groups": 1}
    return {"name": name, "op": "conv2d", "inputs": [], "shape": [1, 64, 16, 16], "attrs": attrs, "params": {}, "module": name, "target": "", "macs": 4718592 if i % 2 else 524288}


def scheme_of(i, last):
    kind, rate, block = ("block-based", 5.0, 16) if last else KINDS[i * 7 % len(KINDS)]
    filter_type = "3x3dw-1x1" if i in RETYPED and not last else "keep"
    return {"filter_type": filter_type, "scheme": kind, "rate": rate, "block": block, "channels": 1}


def label(entry):
    return LayerScheme(entry["filter_type"], entry["scheme"], entry["rate"], entry["block"], entry["channels"]).label


def reasons_of(choices, generator):
    """What trials.json tells of the choices: an ablation (one row of it failed), preferences, reconstruction errors."""
    taken = {name: choice for name, choice in choices.items() if choice != "none"}
    ablation = [
        {"layer": name, "choice": choice, "accuracy_with": 0.71, "accuracy_without": 0.71 + float(generator.normal(0.02, 0.02)), "latency_with": 0.44, "latency_without": 0.44 + float(generator.uniform(0, 0.05)), "error": None}
        for name, choice in taken.items()
    ]  # fmt: skip
    ablation[len(ablation) // 2] |= {"accuracy_without": None, "latency_without": None, "error": "RunnerCrashed: <SIGILL>"}
    preferences = {name: {c: float(generator.uniform()) for c in dict.fromkeys([choice, "none", "filter 2x", "block-punched/8 3x"])} for name, choice in choices.items()}
    reconstruction = [{"layer": name, "filter_type": kind, "error": float(generator.uniform(0.01, 1.2))} for name in list(choices)[:6] for kind in ("1x1", "3x3dw-1x1", "skip")]
    return {"ablation": ablation, "preferences": preferences, "reconstruction": reconstruction}


def trials_of(count, choices, generator):
    rows = []
    for n in range(1, count + 1):
        ms = float(generator.uniform(0.35, 1.0)) if n < count else 0.44
        state, error = "complete", None
        accuracy = 0.985 - 0.12 * max(0.0, 0.6 - ms) + float(generator.normal(0, 0.006))
        if ms > 0.55:
            state, accuracy = "infeasible", None if n % 3 else accuracy
        if n == 9:
            state, accuracy, ms, error = "failed", None, None, "RunnerCrashed: SIGILL"
        if n == 12:
            accuracy = 0.31
        rows.append({"trial": n, "state": state, "accuracy": accuracy, "latency_ms": ms, "dense_ms": 0.95, "ci95": None if ms is None else [ms * 0.98, ms * 1.02], "error": error,
                     "pareto": False, "choices": choices if n == count else dict.fromkeys(choices, "none")})  # fmt: skip
    for r in rows:
        if r["accuracy"] is not None and r["latency_ms"] is not None:
            r["pareto"] = not any(o["accuracy"] is not None and o is not r and o["accuracy"] >= r["accuracy"] and o["latency_ms"] <= r["latency_ms"] for o in rows)
    return rows


def documents(layers=18, trials=30, ratio=0.45, budget_ms=None, budget_ratio=0.5, seed=0, name="npas_net"):
    """Path -> document of a whole run in which the pruned network takes ``ratio`` of the dense latency."""
    generator = np.random.default_rng(seed)
    wander = 1 + 0.08 * np.sin(np.linspace(0, 7, 100))
    samples = {k: [float(v) for v in base * wander * np.exp(generator.normal(0, 0.03, 100))] for k, base in (("original", 1.12), ("dense", 0.95), ("pruned", 0.95 * ratio))}
    graph = [conv(i, i == layers - 1) for i in range(layers)]
    scheme = {x["module"]: scheme_of(i, i == layers - 1) for i, x in enumerate(graph)}
    choices = {k: label(v) for k, v in scheme.items()}
    kernels = [{"layer": x["name"], "kernel": f"{scheme[x['module']]['scheme']}_nchw_oc32x6", "scheme": "", "tile": "", "macs": int(x["macs"] / scheme[x["module"]]["rate"]), "reason": ""} for x in graph]
    rows = [{"name": x["name"], "kernel": k["kernel"], "ms": 0.9 * k["macs"] / 9e7, "dense_kernel": "dense", "dense_ms": x["macs"] / 9e7} for x, k in zip(graph, kernels, strict=True)]
    rows.insert(3, {"name": "stages.0:add", "kernel": None, "ms": None, "dense_kernel": "add", "dense_ms": 0.004})
    limit = budget_ms if budget_ms is not None else budget_ratio * 0.95
    search_config = {"budget_ms": budget_ms, "budget_ratio": budget_ratio, "alpha": 2.0, "strategy": "npas", "trials": trials}
    replaced = [{"layer": f"stages.{i}.act", "module": f"stages.{i}.act", "before": "silu", "after": "hardswish", "call": 0, "sole": True} for i in range(6)]

    def timed(kind, macs):
        return {"sha256": kind * 8, "bytes": 900_000, "macs": macs, "samples_ms": samples[kind], "cpu_ms": samples[kind], "stats": stats(samples[kind]), "init_ms": 1.25, "first_ms": 2.5}

    pruned = timed("pruned", 9_100_000)
    bench = {
        "model": {"name": name, "sha256": pruned["sha256"], "bytes": pruned["bytes"], "scheme_sha256": "5c", "macs": pruned["macs"], "inputs": [[1, 3, 32, 32]]},
        "target": {"triple": "x86_64-linux-gnu", "mcpu": "znver4", "backend": "llvm", "threads": 1},
        "device": {"kind": "host", "soc": "AMD EPYC (family 25, model 17)", "cores": 2, "virtual": True, "emulated": False, "os_build": "Debian 12, Linux 6.1", "fingerprint": "f1" * 32},
        "protocol": {"warmup": 10, "warmup_seconds": 1.0, "runs": 100, "settle": 1, "mask": [1], "order": "interleaved, rotating"},
        **{key: pruned[key] for key in ("samples_ms", "cpu_ms", "stats", "init_ms", "first_ms")},
        "dense": timed("dense", 41_000_000), "original": timed("original", 41_000_000),
        "speedup": speedup(samples["dense"], samples["pruned"]), "speedup_original": speedup(samples["original"], samples["pruned"]), "layers": rows,
        "thermal": {"before": None, "after": None, "max_status": None, "trace": [], "frequency_khz": []},
        "correctness": {"ok": True, "max_abs_err": 2.4e-6, "max_abs_output": 7.31, "tolerance": 1e-3},
        "valid": True, "reasons": ["warning: other programs took the core away during 12 % of the runs"], "link": {"losses": 0, "reconnects": 0},
        "versions": {"npas": "0.1.0", "torch": "2.13.0", "tvm": "0.27.0", "python": "3.11.7"},
        "task": {"metric": "top1", "samples": {"val": 270, "test": 360}}, "config": {"bench": {"runs": 100}}, "overrides": {"bench.runs": 100},
    }  # fmt: skip
    score = {"val": 0.989, "test": 0.978}
    curve = [{"epoch": n + 1, "loss": 1.0 / (n + 1), "accuracy": 0.9 + 0.02 * n - 0.001 * n * n} for n in range(4)]
    race = {"magnitude": 0.948, "magnitude+distill": 0.955, "gradual": 0.951, "admm": 0.957, "admm+distill": 0.966}
    first = {entry: a - 0.01 for entry, a in race.items()}
    rungs = [
        {"epochs": epochs, "race": scores, "curves": {entry: [r | {"accuracy": r["accuracy"] + a - 0.96} for r in curve] for entry, a in scores.items()}}
        for epochs, scores in ((1, first), (3, {entry: race[entry] for entry in ("admm", "admm+distill")}))
    ]
    race = first | rungs[1]["race"]
    pruner = {"metric": "top1", "accuracy": {"dense": {"val": 0.987, "test": 0.981}, "pruned": {"val": 0.982, "test": 0.972}}, "winner": "admm+distill", "race": race,
              "failed": {"gradual+distill": "ValueError: loss is not finite"}, "weights": 600_000, "kept_weights": 188_000, "sparsity": 0.687, "rungs": rungs, "history": curve}  # fmt: skip
    best = {"accuracy": 0.975, "latency_ms": 0.44, "dense_ms": 0.95, "budget_ms": limit}
    return {
        "bench/latency.json": bench,
        "pretrain/metrics.json": {"metric": "top1", "accuracy": score, "epochs": 24, "parameters": 600_000},
        "replace_ops/metrics.json": {
            "metric": "top1", "replacements": 6, "accuracy": {"before": score, "untuned": {"val": 0.941, "test": 0.93}, "after": {"val": 0.987, "test": 0.981}},
            "latency_ms": {"before": 1.12, "after": 0.95}, "config": {"task": {"model": name}, "replace_ops": {"epochs": 5}},
        },
        "replace_ops/graph.json": {"layers": graph, "outputs": ["head.fc"], "macs": 41_000_000, "replacements": replaced},
        "search_scheme/scheme.json": {"target": "host", "budget": {"ms": budget_ms, "ratio": budget_ratio if budget_ms is None else None}, "layers": scheme, "coupled": [], "config": search_config},
        "search_scheme/metrics.json": best | {"metric": "top1", "trials": trials, "config": search_config},
        "search_scheme/trials.json": {"metric": "top1", "budget_ms": limit, "dense_ms": 0.95, "trials": trials_of(trials, choices, generator), "config": search_config} | reasons_of(choices, generator),
        "search_pruner/race.json": pruner,
        "compile/host/manifest.json": {"kernels": kernels, "macs": 9_100_000, "macs_dense": 41_000_000},
    }  # fmt: skip


def write(folder, made):
    """Put the documents into ``folder`` with their schemas."""
    for path, document in made.items():
        file = Path(folder) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"schema": SCHEMAS[path]} | document))
