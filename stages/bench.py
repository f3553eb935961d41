"""npas bench: time the compiled networks on the device, after checking what they compute. Reads probe, compile and the checkpoints; writes bench/latency.json, metrics.json, layers.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import plain, read_json, sha256, write_csv, write_json
from stages.config import Config
from stages.errors import UsageError
from stages.progress import Progress, bar

if TYPE_CHECKING:
    import numpy as np

    from stages.devices import Device
    from stages.tasks import Task

FILES = (Path("compile/host/model.so"), Path("compile/host/dense.so"), Path("compile/host/original.so"))
CHECKPOINTS = ("search_pruner/weights.pt", "replace_ops/model.pt", "pretrain/model.pt")
SCHEME = Path("search_scheme/scheme.json")
PROFILE_RUNS = 30


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Check, time, profile, save; returns the record. Then WrongOutput (before any timing), InvalidMeasurement or TooSlow, if so."""
    from stages.devices import TimingProtocol, open_device, record
    from stages.devices.steady import measure_steadily
    from stages.tasks import make_task

    device, c = open_device(config.probe.device), config.bench
    identity = _same_device(device)
    task = make_task(config.task)
    x, expected = _reference(task)
    manifests = device.manifests(FILES)
    protocol = TimingProtocol(runs=c.runs, warmup=c.warmup, threads=manifests[0]["target"]["threads"], cpus=c.cpus)
    outputs = device.outputs(FILES, [x], protocol)
    checks = [record.correctness(name, a, b, config.compile.tolerance) for name, a, b in zip(record.NETWORKS, outputs, expected, strict=True)]
    with bar(progress, f"timing {len(FILES)} networks, {c.runs} rounds"):
        measured = measure_steadily(device, FILES, [x], protocol, progress)
        kernel_ms = [device.profile(path, [x], PROFILE_RUNS, replace(protocol, warmup_seconds=0.2)) for path in FILES]  # the core is warm already
    networks = [record.Compiled(*values) for values in zip(FILES, manifests, kernel_ms, strict=True)]
    document = record.build(config.task.model, networks, measured, protocol, identity, checks, sha256(SCHEME) if SCHEME.exists() else None)
    document |= {"task": {"metric": task.metric_name, "samples": {split: task.size(split) for split in ("val", "test")}}, "config": {"bench": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    write_json("bench/latency.json", document)
    write_json("bench/metrics.json", record.metrics(document))
    write_csv("bench/layers.csv", [{"layer": row["name"]} | {key: row[key] for key in ("kernel", "ms", "dense_ms")} for row in document["layers"]])
    for reason in measured.reasons if measured.valid else ():
        progress.say(reason)
    record.judge_record(document, c.fail_above)
    return document


def _same_device(device: Device) -> dict[str, Any]:
    """The identity of the device, which must be the one that the networks were searched and compiled for."""
    known, identity = read_json("probe/device.json"), device.probe()
    if known["fingerprint"] != identity["fingerprint"]:
        raise UsageError(f"probe/device.json is of another device ({known['soc']}) than this one ({identity['soc']}).", "Run 'npas probe' and 'npas compile' again, or 'dvc repro'.")
    return identity


def _reference(task: Task) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    """A fixed random input, and what PyTorch computes for it with each of CHECKPOINTS."""
    import numpy as np
    import torch

    from stages.tasks import load_network

    x = np.random.default_rng(0).standard_normal(tuple(task.example().shape)).astype(np.float32)
    expected = []
    for path in CHECKPOINTS:
        with torch.no_grad():
            out = load_network(path, task)(torch.from_numpy(x))
        expected.append(tuple(o.numpy() for o in (out if isinstance(out, tuple | list) else [out])))
    return x, expected
