"""A link that speaks adb's protocol itself, through adb-shell: over TCP, or over USB with npas[usb]. Imports errors, progress and this folder; adb-shell inside functions."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from stages.devices.adb.keys import signers
from stages.devices.adb.link import CONNECT_SECONDS, DIALOG_SECONDS, FILE_SECONDS, Refused, cut, look, silent, unauthorised
from stages.devices.adb.usb import find_usb
from stages.errors import DeviceNotFound
from stages.progress import Progress

if TYPE_CHECKING:
    from adb_shell.adb_device import AdbDevice
    from adb_shell.transport.base_transport import BaseTransport

ADDRESS = "Check cable, address and port ('adb tcpip 5555' makes a phone listen), and that USB debugging is on; 'npas devices' lists what answers."


class DirectLink:
    """The Link over one adb-shell transport. ``make`` returns a fresh, unconnected one: a phone that was unplugged comes back as another USB device."""

    def __init__(self, name: str, transport: str, make: Callable[[], BaseTransport]):
        self.name, self.transport, self._make = name, transport, make
        self._device: AdbDevice | None = None

    def open(self, progress: Progress, dialog_seconds: float = DIALOG_SECONDS) -> None:
        """See Link.open."""
        from adb_shell import exceptions as adb

        from stages.devices.adb.corrected import Device

        self.close()
        asked = False

        def ask(_: Any) -> None:
            nonlocal asked
            asked = True
            if dialog_seconds >= CONNECT_SECONDS:  # less is a listing's look, for which nobody should run
                progress.say(look(self.name, dialog_seconds))

        keys = signers()
        device = Device(self._make(), default_transport_timeout_s=CONNECT_SECONDS, banner="npas")
        try:
            device.connect(keys, CONNECT_SECONDS, dialog_seconds, max(CONNECT_SECONDS, dialog_seconds), ask)
            self._device = device
        except adb.InvalidCommandError as error:
            hint = "Wireless debugging (Android 11 and later) wants TLS: 'adb pair' and 'adb connect' it, or 'adb tcpip 5555' over a cable first."
            raise DeviceNotFound(f"{self.name} answers, but not as adb does.", hint if "STLS" in str(error) else ADDRESS) from error
        except _gone() as error:
            if asked:  # a phone on which nobody accepts, or on which someone refuses, says nothing at all
                raise unauthorised(self.name) from error
            raise DeviceNotFound(f"{self.name} does not answer.", ADDRESS) from error
        finally:
            if self._device is None:
                device.close()

    def run(self, command: str, timeout_s: float) -> bytes:
        """See Link.run."""
        with self._faults(timeout_s):
            return self._connected().shell(command, timeout_s, timeout_s, timeout_s, decode=False)

    def send(self, source: BinaryIO, remote: str, mode: int, sent: Callable[[int], None]) -> None:
        """See Link.send."""
        from adb_shell.exceptions import PushFailedError

        pieces = _Counted(source.read(), sent)  # adb-shell takes a path or a BytesIO
        try:
            with self._faults(FILE_SECONDS):
                self._connected().push(pieces, remote, st_mode=0o100000 | mode, transport_timeout_s=FILE_SECONDS, read_timeout_s=FILE_SECONDS)
        except PushFailedError as error:
            raise Refused(bytes(error.args[0]).decode(errors="replace")) from error
        except (KeyError, struct.error) as error:  # adb-shell drops the head of the phone's refusal and takes the words for numbers
            raise Refused("it stopped taking the file") from error

    def receive(self, remote: str, sink: BinaryIO) -> None:
        """See Link.receive."""
        from adb_shell.exceptions import AdbCommandFailureException

        held = BytesIO()
        try:
            with self._faults(FILE_SECONDS):
                self._connected().pull(remote, held, transport_timeout_s=FILE_SECONDS, read_timeout_s=FILE_SECONDS)
        except AdbCommandFailureException as error:
            raise Refused(str(error).removeprefix("Command failed: ")) from error
        sink.write(held.getbuffer())

    def close(self) -> None:
        """See Link.close."""
        if self._device is not None:
            device, self._device = self._device, None
            device.close()

    def _connected(self) -> AdbDevice:
        if self._device is None:
            raise cut(self.name)
        return self._device

    @contextmanager
    def _faults(self, seconds: float) -> Iterator[None]:
        """adb-shell's many exceptions for "gone" and "silent" as DeviceLost, and the link closed: its two ends may be out of step."""
        try:
            yield
        except BaseException as error:  # Ctrl-C in mid-message too
            self.close()
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise cut(self.name) from error
            if isinstance(error, _gone()):
                raise silent(self.name, seconds) from error
            raise


def _gone() -> tuple[type[Exception], ...]:
    """What is raised when a phone is gone, says nothing, or nothing sensible."""
    from adb_shell import exceptions as adb

    return (OSError, adb.AdbTimeoutError, adb.AdbConnectionError, adb.InvalidChecksumError, adb.InvalidCommandError, adb.InvalidResponseError)


class _Counted(BytesIO):
    """Bytes that tell how many of them have been read."""

    def __init__(self, data: bytes, told: Callable[[int], None]):
        super().__init__(data)
        self._told = told

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self._told(len(piece))
        return piece


def tcp_link(host: str, port: int) -> DirectLink:
    """adbd at HOST:PORT."""

    def make() -> BaseTransport:
        from stages.devices.adb.corrected import TcpTransport

        return TcpTransport(host, port)

    return DirectLink(f"{host}:{port}", "tcp", make)


def usb_link(serial: str) -> DirectLink:
    """The phone on USB with that serial; needs npas[usb]."""
    return DirectLink(serial, "usb", lambda: find_usb(serial))
