"""What a link to one phone can do, whatever carries it (TCP, USB, an adb server), and the words for how it fails. Imports errors and progress only."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol

from stages.errors import DeviceLost, DeviceUnauthorised
from stages.progress import Progress

CONNECT_SECONDS = 5.0  # a phone on the same network answers within milliseconds
DIALOG_SECONDS = 30.0  # how long a person may take to find the phone and accept the key
FILE_SECONDS = 30.0  # the longest silence while a file travels; flash that is being erased stalls for seconds


class Refused(Exception):
    """The phone answered, but would not write or read the file (``str(error)`` is its reason), or the two lost step over it. The link must be opened anew."""


class Link(Protocol):
    """One connection to adbd. Every method but ``open`` raises DeviceLost when the other end is gone or silent; after that only ``open`` and ``close`` make sense."""

    name: str  # serial or HOST:PORT, as a person types it
    transport: str  # tcp, usb or server

    def open(self, progress: Progress, dialog_seconds: float = DIALOG_SECONDS) -> None:
        """Connect and be authorised; an open link is closed first. DeviceNotFound, DeviceUnauthorised (nobody accepted the key in time), DeviceLost."""

    def run(self, command: str, timeout_s: float) -> bytes:
        """What ``command`` prints, stdout and stderr together. DeviceLost when it neither ends nor prints for ``timeout_s``."""

    def send(self, source: BinaryIO, remote: str, mode: int, sent: Callable[[int], None]) -> None:
        """Write ``source`` to ``remote``; ``sent`` is told the bytes of each piece. Refused as well."""

    def receive(self, remote: str, sink: BinaryIO) -> None:
        """Read ``remote`` into ``sink``. Refused as well (no such file)."""

    def close(self) -> None:
        """End the connection; harmless when there is none."""


def cut(name: str) -> DeviceLost:
    """The error for a connection that the other end, or the cable, has ended."""
    return DeviceLost(f"The link to {name} was cut.", "Check the cable or the network, then run the same command again; what was measured is kept.")


def silent(name: str, seconds: float) -> DeviceLost:
    """The error for a connection over which nothing comes any more."""
    return DeviceLost(f"{name} has not answered for {seconds:g} s.", "Check the cable or the network, and that the phone is awake; then run the same command again.")


def unauthorised(name: str) -> DeviceUnauthorised:
    """The error for a phone that doesn't trust this computer (yet)."""
    hint = "Unlock the phone, tick 'Always allow' in its 'Allow USB debugging?' dialog and accept; if none appears, revoke USB debugging authorisations in Developer options and connect again."
    return DeviceUnauthorised(f"{name} has not accepted this computer's key.", hint)


def look(name: str, seconds: float) -> str:
    """What to tell the person while the phone shows its dialog."""
    return f"Look at the phone {name}: accept 'Allow USB debugging?' (waiting {seconds:g} s)"
