"""Devices: where latency is measured. Every device has the same four methods; a new kind is one file and one line in DEVICES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.devices.host import HostDevice
from stages.devices.timing import Measurement, TimingProtocol, speedup, stats
from stages.errors import DeviceNotFound

__all__ = ["DEVICES", "Device", "Measurement", "TimingProtocol", "list_devices", "open_device", "speedup", "stats"]


class Device(Protocol):
    """Something that runs compiled networks. ``models`` are files of this computer; a device that is elsewhere brings them there itself."""

    def probe(self) -> dict[str, Any]:
        """Who it is (probe.py): deterministic, with ``fingerprint``."""

    def outputs(self, models: Sequence[Path], inputs: Sequence[np.ndarray], protocol: TimingProtocol = ...) -> tuple[tuple[np.ndarray, ...], ...]:
        """What each network computes for ``inputs``, untimed: check this before believing any time."""

    def measure(self, models: Sequence[Path], inputs: Sequence[np.ndarray], protocol: TimingProtocol) -> Measurement:
        """Time all networks in interleaved rounds on the same inputs."""

    def profile(self, model: Path, inputs: Sequence[np.ndarray], runs: int, protocol: TimingProtocol) -> list[float]:
        """Median ms of each entry of the manifest's kernels."""

    def manifests(self, models: Sequence[Path]) -> list[dict[str, Any]]:
        """The manifest inside each compiled network."""


DEVICES: dict[str, Callable[[], Device]] = {"host": HostDevice}


def open_device(spec: str) -> Device:
    """The device that ``spec`` names ("host"). DeviceNotFound (exit 4) with the known ones otherwise."""
    if spec in DEVICES:
        return DEVICES[spec]()
    if spec == "adb" or spec.startswith("adb:"):
        raise DeviceNotFound(f"This version of npas can't measure on phones yet ({spec}).", f"Known devices: {', '.join(DEVICES)}. 'npas devices' lists them.")
    raise DeviceNotFound(f"There is no device '{spec}'.", f"Known devices: {', '.join(DEVICES)}. 'npas devices' lists them.")


def list_devices() -> list[dict[str, Any]]:
    """One row per device: spec, kind, model, soc, abi, cores, isa, state."""
    rows = []
    for spec, make in DEVICES.items():
        identity = make().probe()
        rows.append({"spec": spec} | {key: identity[key] for key in ("kind", "model", "soc", "abi", "cores", "isa")} | {"state": "ready"})
    return rows
