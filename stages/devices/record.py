"""The record of a bench, npas-bench/1: the same for every kind of device. Pure functions over a Measurement and manifests; imports numpy only."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stages.artifacts import sha256
from stages.devices.baseline import compare
from stages.devices.correct import correctness
from stages.devices.models import Linked, Model
from stages.devices.timing import Measurement, TimingProtocol, speedup, stats
from stages.errors import InvalidMeasurement, NpasError, TooSlow

__all__ = ["Compiled", "NETWORKS", "build", "correctness", "judge", "layer_rows", "metrics"]
NETWORKS = ("pruned", "dense", "original")  # the order of a bench: the network in question first, then its references


@dataclass(frozen=True)
class Compiled:
    """One compiled network of a bench: its file, its manifest, and the median ms of each of the manifest's kernels."""

    model: Model
    manifest: Mapping[str, Any]
    kernel_ms: Sequence[float]


def layer_rows(pruned: Compiled, dense: Compiled) -> list[dict[str, Any]]:
    """One row a layer in network order: name, kernel, ms, dense_kernel, dense_ms. What one network lacks (fused or removed there) is None."""
    mine, other = _by_layer(pruned), _by_layer(dense)
    names = list(mine)
    for before, name in zip([None, *other], other, strict=False):
        if name not in mine:  # after the layer that it follows in the dense network
            names.insert(names.index(before) + 1 if before in names else 0, name)
    blank: tuple[None, None] = (None, None)
    rows = [(name, mine.get(name, blank), other.get(name, blank)) for name in names]
    return [{"name": name, "kernel": a[0], "ms": a[1], "dense_kernel": b[0], "dense_ms": b[1]} for name, a, b in rows]


def _by_layer(network: Compiled) -> dict[str, tuple[str, float]]:
    found: dict[str, tuple[str, float]] = {}
    for entry, ms in zip(network.manifest["kernels"], network.kernel_ms, strict=True):
        kernel, total = found.get(entry["layer"], ("", 0.0))
        found[entry["layer"]] = (f"{kernel} + {entry['kernel']}" if kernel else entry["kernel"], total + ms)
    return found


def build(name: str, networks: Sequence[Compiled], measured: Measurement, protocol: TimingProtocol, identity: Mapping[str, Any], checks: Sequence[Mapping[str, float]], scheme_sha256: str | None) -> dict[str, Any]:
    """The whole record. ``networks``, ``measured`` and ``checks`` are in the order of NETWORKS; ``identity`` is the device's probe."""
    pruned, dense, original = (_network(n, measured, k) for k, n in enumerate(networks))
    manifest, around = networks[0].manifest, measured.conditions
    target = manifest["target"]
    return {
        "schema": "npas-bench/1",
        "model": {"name": name, "sha256": pruned["sha256"], "bytes": pruned["bytes"], "scheme_sha256": scheme_sha256, "macs": pruned["macs"], "inputs": [i["shape"] for i in manifest["inputs"]]},
        "target": {"triple": target["triple"], "mcpu": target["mcpu"], "backend": "llvm", "threads": protocol.threads},
        "device": dict(identity) | {"sdk": around.sdk, "kernel": around.kernel, "governor": around.governor, "battery": around.battery and dict(around.battery)},
        "protocol": {"warmup": protocol.warmup, "warmup_seconds": protocol.warmup_seconds, "runs": protocol.runs, "settle": protocol.settle, "mask": list(measured.cpus), "order": "interleaved, rotating"},
        "samples_ms": pruned["samples_ms"],
        "cpu_ms": pruned["cpu_ms"],
        "stats": pruned["stats"],
        "dense": dense,
        "original": original,
        "speedup": speedup(dense["samples_ms"], pruned["samples_ms"]),
        "speedup_original": speedup(original["samples_ms"], pruned["samples_ms"]),
        "layers": layer_rows(networks[0], networks[1]),
        "init_ms": pruned["init_ms"],
        "first_ms": pruned["first_ms"],
        "thermal": dict(around.thermal) | {"frequency_khz": list(measured.frequency_khz)},
        "correctness": {"ok": True, **checks[0], "dense": dict(checks[1]), "original": dict(checks[2])},
        "valid": measured.valid,
        "reasons": list(measured.reasons),
        "link": dict(around.link),
        "versions": {"npas": _version("npas"), "torch": _version("torch"), "tvm": manifest["tvm"], "python": platform.python_version()},
    }


def _network(network: Compiled, measured: Measurement, k: int) -> dict[str, Any]:
    samples = list(measured.samples_ms[k])
    path = network.model.program if isinstance(network.model, Linked) else network.model
    return {
        "sha256": sha256(path), "bytes": path.stat().st_size, "macs": network.manifest["macs"], "samples_ms": samples, "cpu_ms": list(measured.cpu_ms[k]),
        "stats": stats(samples), "init_ms": measured.init_ms[k], "first_ms": measured.first_ms[k],
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that isn't installed
        return None


def metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """The flat numbers that `dvc metrics show` compares."""
    return {
        "latency_ms": record["stats"]["median"], "dense_ms": record["dense"]["stats"]["median"], "original_ms": record["original"]["stats"]["median"],
        "p90_ms": record["stats"]["p90"], "speedup": record["speedup"]["ratio"], "speedup_original": record["speedup_original"]["ratio"],
        "max_abs_err": record["correctness"]["max_abs_err"], "valid": record["valid"],
    }  # fmt: skip


def judge(record: dict[str, Any], fail_above: float | None, baseline: Mapping[str, Any] | None = None, margin: float = 0.0) -> NpasError | None:
    """InvalidMeasurement (exit 9), else TooSlow (exit 11) when the median is above ``fail_above`` ms or slower than the baseline allows: a time that can't be trusted fails nothing else.

    The comparison with the baseline becomes part of ``record``.
    """
    median = record["stats"]["median"]
    if baseline is not None:
        record["baseline"] = compare(record, baseline, margin)
    if not record["valid"]:
        why = "; ".join(r for r in record["reasons"] if not r.startswith("warning:"))
        return InvalidMeasurement(f"Measured {median:.3f} ms, but it is not to be trusted: {why}.", "The record is saved. Stop other programs, or choose other cores with --cpus or --cluster, and measure again.")
    if fail_above is not None and median > fail_above:
        return TooSlow(f"The median is {median:.3f} ms, above the {fail_above:g} ms allowed.", "Lower the budget of the search, or raise --fail-above; the record is saved.")
    if baseline is not None and record["baseline"]["slower"]:
        low, high = record["baseline"]["ci95"]
        return TooSlow(
            f"Relative to the dense network it takes {record['baseline']['ratio']:.3f} times as long as in the baseline ({low:.3f} .. {high:.3f}).", "The record is saved; if the change is meant, let it be the next baseline."
        )
    return None
