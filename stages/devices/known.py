"""Whether the devices at hand are the one that probe/device.json tells of: budgets and latencies of another one mean nothing. Imports devices/, errors and progress of npas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.devices import open_device
from stages.devices.several import GONE, kind
from stages.errors import NpasError, UsageError
from stages.progress import Progress


def check_same(spec: str, identity: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """UsageError unless ``identity``, of the device that ``spec`` names, is the one in probe/device.json."""
    if identity["fingerprint"] != known["fingerprint"]:
        raise _other(spec, identity, known)


def check_known(spec: str, known: Mapping[str, Any], progress: Progress, hosts: Sequence[str] = ()) -> None:
    """UsageError unless ``spec`` names the device in probe/device.json. Of several phones each that is there must be of its kind; DeviceNotFound and the like when none is there.

    Asked over connections of its own, which end with it; a phone that doesn't trust this computer yet is asked to meanwhile.
    """
    parts = [part.strip() for part in spec.split(",")]
    absent: list[NpasError] = []
    for part in parts:
        device = open_device(part, progress, hosts)
        try:
            identity = device.probe()
        except GONE as why:
            absent.append(why)
            continue
        finally:
            device.close()
        if len(parts) == 1:
            check_same(part, identity, known)
        elif kind(identity) != kind(known):
            raise _other(part, identity, known)
    if len(absent) == len(parts):
        raise absent[0]
    for error in absent:
        progress.say(f"{error.message} The other phones measure.")


def _other(spec: str, identity: Mapping[str, Any], known: Mapping[str, Any]) -> UsageError:
    told, here = (f"{who['model']}, {who['soc']}" for who in (known, identity))
    here += " of another system or serial number" if told == here else ""
    return UsageError(f"probe/device.json tells of another device ({told}) than {spec} ({here}).", f"Run 'npas probe --device {spec}' first; 'dvc repro' does it by itself where params.yaml names the device.")
