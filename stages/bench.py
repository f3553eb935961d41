"""npas bench: time the compiled networks on each device, after checking what they compute. Reads probe, compile and the checkpoints; writes bench/latency.json, metrics.json, layers.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import plain, read_json, sha256, write_atomic, write_csv, write_json
from stages.config import Config
from stages.errors import NpasError, UsageError
from stages.progress import Progress, bar

if TYPE_CHECKING:
    import numpy as np

    from stages.devices import Device, Expected, Model
    from stages.tasks import Task

NETWORKS = ("model", "dense", "original")
FILES = (Path("compile/host/model.so"), Path("compile/host/dense.so"), Path("compile/host/original.so"))
CHECKPOINTS = ("search_pruner/weights.pt", "replace_ops/model.pt", "pretrain/model.pt")
SCHEME = Path("search_scheme/scheme.json")
PROFILE_RUNS = 30


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Check, time, profile, save; returns the record of the first device, with those of further ones under "others".

    Then WrongOutput (before any timing), InvalidMeasurement or TooSlow, if so, or what became of a device; the records of the devices before it are saved.
    """
    from stages.devices import Expected, record
    from stages.tasks import make_task

    c = config.bench
    specs = c.devices or (config.probe.device,)
    baseline = read_json(c.baseline) if c.baseline else None
    task = make_task(config.task)
    x, outputs = _reference(task)
    expected = Expected(record.NETWORKS, outputs, config.compile.tolerance)
    records: list[dict[str, Any]] = []
    failures: list[NpasError | None] = []
    about = {"task": {"metric": task.metric_name, "samples": {split: task.size(split) for split in ("val", "test")}}, "config": {"bench": plain(c)}}
    for spec in specs:
        try:
            records.append(_measure(spec, config, x, expected, progress) | about | ({"overrides": plain(overrides)} if overrides else {}))
            failures.append(record.judge(records[-1], c.fail_above, baseline, c.margin))
        except NpasError as error:
            failures.append(error)
            break
    if records:
        _save(records, specs)
    if c.junit:
        _write_junit(c.junit, records, failures, specs)
    for failure in failures:
        if failure:
            raise failure
    return _whole(records)


def _measure(spec: str, config: Config, x: np.ndarray, expected: Expected, progress: Progress) -> dict[str, Any]:
    """The record of one device."""
    from stages.devices import TimingProtocol, open_device, record
    from stages.devices.steady import measure_steadily

    c, device = config.bench, open_device(spec, progress, config.probe.hosts)
    try:
        identity = _identity(spec, config, device)
        models, threads = _networks(device, config, progress)
        if c.threads and c.threads > threads:
            raise UsageError(f"The networks were compiled for {threads} threads at most.", f"Give fewer than {c.threads}, or compile with compile.threads={c.threads}.")
        protocol = TimingProtocol(
            runs=c.runs, warmup=c.warmup, threads=c.threads or threads, cpus=c.cpus, cluster=c.cluster, profile_runs=PROFILE_RUNS, cool_seconds=60 * c.cool_minutes
        )
        with bar(progress, f"timing {len(models)} networks on {spec}, {c.runs} rounds"):
            measured = measure_steadily(device, models, [x], protocol, progress, expected)
    finally:
        device.close()
    networks = [record.Compiled(*values) for values in zip(models, measured.manifests, measured.kernel_ms, strict=True)]
    document = record.build(config.task.model, networks, measured, protocol, identity, expected.check(measured.outputs), sha256(SCHEME) if SCHEME.exists() else None)
    if identity["emulated"]:
        progress.say(f"{spec} is EMULATED, not a phone: its milliseconds mean nothing")
    for reason in measured.reasons if measured.valid else ():
        progress.say(reason)
    return document


def _identity(spec: str, config: Config, device: Device) -> dict[str, Any]:
    """Who the device is. UsageError when it is another one than the networks were searched and compiled for; a device that they weren't meant for may be any."""
    from stages.devices.known import check_same

    identity = device.probe()
    if spec == config.probe.device:
        check_same(spec, identity, read_json("probe/device.json"))
    return identity


def _networks(device: Device, config: Config, progress: Progress) -> tuple[tuple[Model, ...], int]:
    """The compiled networks for the device and the threads that they run on at most; what is missing for a phone, or made of other weights, is compiled now."""
    from stages import compile as compiler
    from stages.devices import Linked

    if device.target == "host":
        return FILES, device.manifests(FILES)[0]["target"]["threads"]
    wanted = replace(config, compile=replace(config.compile, target=device.target, backend="cpu", precision="float32"))
    folder = Path("compile") / device.target
    if not compiler.is_current(wanted):
        progress.say(f"{folder} is missing or made of other weights: compiling it from {CHECKPOINTS[0]}")
        compiler.run(wanted, progress)
    manifest = read_json(folder / "manifest.json")
    return tuple(Linked(folder / "runner", name) for name in NETWORKS), manifest["target"]["threads"]


def _whole(records: list[dict[str, Any]]) -> dict[str, Any]:
    return records[0] | ({"others": records[1:]} if records[1:] else {})


def _save(records: list[dict[str, Any]], specs: tuple[str, ...]) -> None:
    from stages.devices import record

    write_json("bench/latency.json", _whole(records))
    further = {spec: record.metrics(r) for spec, r in zip(specs[1:], records[1:], strict=False)}
    write_json("bench/metrics.json", record.metrics(records[0]) | ({"others": further} if further else {}))
    layers = [{"layer": row["name"]} | {key: row[key] for key in ("kernel", "ms", "dense_ms")} for row in records[0]["layers"]]
    write_csv("bench/layers.csv", layers)


def _write_junit(path: str, records: list[dict[str, Any]], failures: list[NpasError | None], specs: tuple[str, ...]) -> None:
    from stages.devices.junit import report

    text = report(records, failures, specs)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


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
