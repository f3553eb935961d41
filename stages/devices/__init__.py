"""Devices: where latency is measured. Every device has the same four methods; a new kind is one file and one line in DEVICES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from stages.devices.adb.discovery import open_connection
from stages.devices.adb.listing import phone_rows
from stages.devices.android import Android
from stages.devices.correct import Expected
from stages.devices.host import HostDevice
from stages.devices.models import Linked, Model
from stages.devices.several import Several
from stages.devices.timing import Measurement, TimingProtocol, speedup, stats
from stages.errors import DeviceNotFound
from stages.progress import Progress

__all__ = ["DEVICES", "Device", "Expected", "Linked", "Measurement", "Model", "TimingProtocol", "list_devices", "open_device", "speedup", "stats"]


class Device(Protocol):
    """Something that runs compiled networks. ``models`` are files of this computer; a device that is elsewhere brings them there itself.

    ``target`` is what they have to be compiled for (config.TARGETS).
    """

    target: str

    def probe(self) -> dict[str, Any]:
        """Who it is (probe.py): deterministic, with ``fingerprint``."""

    def outputs(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol = ...) -> tuple[tuple[np.ndarray, ...], ...]:
        """What each network computes for ``inputs``, untimed: check this before believing any time."""

    def measure(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol, expected: Expected | None = ...) -> Measurement:
        """Time all networks in interleaved rounds on the same inputs; WrongOutput before any timing when one doesn't compute what is ``expected``."""

    def profile(self, model: Model, inputs: Sequence[np.ndarray], runs: int, protocol: TimingProtocol) -> list[float]:
        """Median ms of each entry of the manifest's kernels."""

    def manifests(self, models: Sequence[Model]) -> list[dict[str, Any]]:
        """The manifest inside each compiled network."""

    def ready(self) -> None:
        """Raise what keeps it from measuring at this moment: DeviceNotFound, DeviceLost, DeviceUnauthorised, DeviceHot."""

    def close(self) -> None:
        """Give back what it holds open; a later question opens it again."""


DEVICES: dict[str, Callable[[], Device]] = {"host": HostDevice}


def open_device(spec: str, progress: Progress | None = None, hosts: Sequence[str] = ()) -> Device:
    """The device that ``spec`` names: "host", "adb" (the only phone), "adb:SERIAL", "adb:HOST:PORT", or several phones of one model, "adb:A,adb:B", that take turns.
    A phone is connected to when it is first asked for something.

    ``progress`` hears what a person should know meanwhile; ``hosts`` are phones on the network (HOST:PORT) among which "adb" looks too. DeviceNotFound (exit 4) with the known ones for any other.
    """
    if spec in DEVICES:
        return DEVICES[spec]()
    say = progress.say if progress else lambda line: None
    phones = {name: Android(partial(open_connection, name, progress, hosts), say) for part in spec.split(",") if (name := part.strip()).startswith("adb:") or name == "adb"}
    if len(phones) == len(spec.split(",")):
        return next(iter(phones.values())) if len(phones) == 1 else Several(phones, say)
    raise DeviceNotFound(f"There is no device '{spec}'.", f"Known devices: {', '.join(DEVICES)}, adb, adb:SERIAL, adb:HOST:PORT. 'npas devices' lists them.")


def list_devices(hosts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row per device: spec, kind, transport, model, soc, abi, cores, isa, state. ``hosts``: HOST:PORT of phones on the network."""
    rows = []
    for spec, make in DEVICES.items():
        identity = make().probe()
        rows.append({"spec": spec} | {key: identity[key] for key in ("kind", "transport", "model", "soc", "abi", "cores", "isa")} | {"state": "ready"})
    return rows + phone_rows(hosts)
