"""Which phones are there, and which one a spec means: "adb" (the only one), "adb:SERIAL", "adb:HOST:PORT". Imports errors, progress and this folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from stages.devices.adb.connection import Connection
from stages.devices.adb.direct import tcp_link, usb_link
from stages.devices.adb.link import Link
from stages.devices.adb.server import ServerLink, server_devices
from stages.devices.adb.usb import usb_serials
from stages.errors import DeviceNotFound, UsageError
from stages.progress import Progress, Silent

STATES = {"device": "ready", "unauthorized": "unauthorised", "authorizing": "unauthorised"}  # the adb server's word -> ours; the others are the same
_ADDRESS = re.compile(r"\[?([^\[\]]+)\]?:(\d{1,5})")


@dataclass(frozen=True)
class Found:
    """A phone that could be opened. ``state`` is what the adb server says of it, "" where only opening it tells."""

    serial: str
    transport: str
    state: str
    link: Callable[[], Link]

    @property
    def spec(self) -> str:
        """What --device takes."""
        return f"adb:{self.serial}"


def address(text: str) -> tuple[str, int] | None:
    """HOST:PORT (or [IPV6]:PORT) taken apart, None for anything else."""
    match = _ADDRESS.fullmatch(text)
    return (match[1], int(match[2])) if match and 0 < int(match[2]) < 65536 else None


def find(hosts: Sequence[str] = ()) -> list[Found]:
    """All phones that an adb server, USB or ``hosts`` (HOST:PORT) offer. One that the server has is reached through it, for it may hold the phone's USB interface."""
    found = {serial: Found(serial, "server", STATES.get(row["state"], row["state"]), partial(ServerLink, serial)) for serial, row in (server_devices() or {}).items()}
    for serial, state in usb_serials().items():
        found.setdefault(serial, Found(serial, "usb", state, partial(usb_link, serial)))
    for host in hosts:
        found.setdefault(host, _at(host))
    return list(found.values())


def _at(text: str) -> Found:
    place = address(text)
    if place is None:
        raise UsageError(f"'{text}' is not HOST:PORT.", "probe.hosts lists phones that listen on the network, e.g. [192.168.1.5:5555].")
    return Found(text, "tcp", "", partial(tcp_link, *place))


def choose(spec: str, hosts: Sequence[str] = ()) -> Found:
    """The phone that ``spec`` means. DeviceNotFound (exit 4) when there is none, or several and the spec names none of them: the hint lists them."""
    found = find(hosts)
    listed = ", ".join(f"{phone.spec} ({phone.state or phone.transport})" for phone in found)
    if spec == "adb":
        if len(found) == 1:
            return found[0]
        if found:
            raise DeviceNotFound(f"There are {len(found)} phones, and --device adb names none.", f"Choose one: {listed}.")
        raise DeviceNotFound("There is no phone.", "Plug one in with USB debugging on, or name its address: --device adb:HOST:PORT. 'npas devices' lists what is there.")
    serial = spec.removeprefix("adb:")
    for phone in found:
        if phone.serial == serial:
            return phone
    if address(serial):
        return _at(serial)
    raise DeviceNotFound(f"There is no phone '{serial}'.", f"There are: {listed}." if found else "No phone is connected; 'npas devices' lists what is there.")


def open_connection(spec: str, progress: Progress | None = None, hosts: Sequence[str] = ()) -> Connection:
    """A Connection to the phone that ``spec`` means, authorised: the person is told through ``progress`` to accept the key. DeviceNotFound, DeviceUnauthorised, UsageError."""
    return Connection(choose(spec, hosts).link(), progress or Silent())
