"""The phones that are there, one row each, for `npas devices`. Imports errors, progress and this folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stages.devices.adb.connection import Connection
from stages.devices.adb.discovery import Found, find
from stages.devices.adb.facts import identity
from stages.errors import DeviceUnauthorised, NpasError
from stages.progress import Silent

LOOK_SECONDS = 1.0  # the phone shows its dialog, but a list doesn't wait for it


def phone_rows(hosts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """spec, kind, transport, model, soc, abi, cores, isa, state of each phone; what can't be asked (unauthorised, offline, ...) is None. ``hosts``: HOST:PORT of phones on the network."""
    found = find(hosts)
    with ThreadPoolExecutor(max_workers=max(1, len(found))) as pool:  # those that don't answer take seconds each
        return list(pool.map(_row, found))


def _row(phone: Found) -> dict[str, Any]:
    who, state = dict[str, Any](), phone.state or "ready"
    if state == "ready":
        try:
            with Connection(phone.link(), Silent(), LOOK_SECONDS) as connection:
                who = identity(connection)
        except DeviceUnauthorised:
            state = "unauthorised"
        except NpasError:
            state = "offline"
    return {"spec": phone.spec, "kind": "phone", "transport": phone.transport} | {key: who.get(key) for key in ("model", "soc", "abi", "cores", "isa")} | {"state": state}
