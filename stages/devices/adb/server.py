"""A link through a running adb server, which may hold the phone's USB interface: its socket protocol (AOSP, system/core/adb: OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT). Never starts or stops one."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from stages.devices.adb.link import CONNECT_SECONDS, DIALOG_SECONDS, FILE_SECONDS, Refused, cut, look, silent, unauthorised
from stages.errors import DeviceNotFound
from stages.progress import Progress

PIECE = 64 * 1024  # SYNC_DATA_MAX
POLL_SECONDS = 0.5
_STATES = "no permissions|device|offline|unauthorized|authorizing|connecting|recovery|sideload|rescue|bootloader|host|detached|unknown"  # AOSP, adb.cpp and transport.cpp
_DEVICE = re.compile(rf"(\s*\S.*?)\s+({_STATES})(?!\S)(.*)")


def server_port() -> int:
    """Where adb's own client looks for the server: $ANDROID_ADB_SERVER_PORT, else 5037, of this computer."""
    text = os.environ.get("ANDROID_ADB_SERVER_PORT", "")
    return int(text) if text.isdigit() else 5037


def server_devices() -> dict[str, dict[str, str]] | None:
    """Serial -> {"state": "device", "model": "Pixel_6", ...} as in 'adb devices -l'; None when no server runs."""
    try:
        with _Stream("the adb server", CONNECT_SECONDS) as stream:
            stream.ask("host:devices-l")
            return parse_devices(stream.counted())
    except OSError:
        return None


def parse_devices(text: str) -> dict[str, dict[str, str]]:
    """The lines of host:devices-l: serial, state, then key:value pairs. A serial may begin with a space or hold some; a state of several words ("no permissions (...); see [...]") is cut to its first two."""
    found = {}
    for line in text.splitlines():
        if match := _DEVICE.fullmatch(line):
            serial, state, rest = match.groups()
            found[serial] = {"state": state} | dict(word.split(":", 1) for word in rest.split() if ":" in word and not word.startswith(("[", "http")))
    return found


class ServerLink:
    """The Link over an adb server. Every call is a connection of its own to the server, so none can be out of step."""

    transport = "server"

    def __init__(self, serial: str):
        self.name, self._open = serial, False

    def open(self, progress: Progress, dialog_seconds: float = DIALOG_SECONDS) -> None:
        """See Link.open. The server shows the phone its own key, and we wait until the phone's state is "device"."""
        self.close()
        end, told = time.monotonic() + dialog_seconds, False
        while True:
            state = (server_devices() or {}).get(self.name, {}).get("state", "")
            if state == "device":
                self._open = True
                return
            if state not in ("unauthorized", "authorizing"):
                raise DeviceNotFound(f"The adb server has no phone {self.name} that is ready{f' (state: {state})' if state else ''}.", "Plug it in again; 'adb devices -l' shows what the server sees.")
            if time.monotonic() >= end:
                raise unauthorised(self.name)
            if not told and dialog_seconds >= CONNECT_SECONDS:
                progress.say(look(self.name, dialog_seconds))
                told = True
            time.sleep(POLL_SECONDS)

    def run(self, command: str, timeout_s: float) -> bytes:
        """See Link.run."""
        with self._service(f"shell:{command}", timeout_s) as stream:
            return stream.rest()

    def send(self, source: BinaryIO, remote: str, mode: int, sent: Callable[[int], None]) -> None:
        """See Link.send."""
        with self._service("sync:", FILE_SECONDS) as stream:
            stream.packet(b"SEND", f"{remote},{0o100000 | mode}".encode())
            try:
                while piece := source.read(PIECE):
                    stream.packet(b"DATA", piece)
                    sent(len(piece))
                stream.write(struct.pack("<4sI", b"DONE", int(time.time())))
            except (ConnectionResetError, BrokenPipeError):
                pass  # a phone that refuses says why before it hangs up
            stream.accepted()

    def receive(self, remote: str, sink: BinaryIO) -> None:
        """See Link.receive."""
        with self._service("sync:", FILE_SECONDS) as stream:
            stream.packet(b"RECV", remote.encode())
            while (piece := stream.data()) is not None:
                sink.write(piece)

    def close(self) -> None:
        """See Link.close."""
        self._open = False

    @contextmanager
    def _service(self, service: str, timeout_s: float) -> Iterator[_Stream]:
        """A connection to a service of the phone; socket errors as DeviceLost."""
        if not self._open:
            raise cut(self.name)
        try:
            with _Stream(self.name, timeout_s) as stream:
                stream.ask(f"host:transport:{self.name}")
                stream.ask(service)
                yield stream
        except TimeoutError as error:
            self.close()
            raise silent(self.name, timeout_s) from error
        except (OSError, EOFError) as error:
            self.close()
            raise cut(self.name) from error


class _Stream:
    """One connection to the server. ``timeout_s`` is the longest silence. OSError when the server, or the phone behind it, is gone; EOFError in mid-message."""

    def __init__(self, name: str, timeout_s: float):
        self._name = name
        self._socket = socket.create_connection(("127.0.0.1", server_port()), timeout=CONNECT_SECONDS)
        self._socket.settimeout(timeout_s)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def rest(self) -> bytes:
        pieces = []
        while piece := self._socket.recv(PIECE):
            pieces.append(piece)
        return b"".join(pieces)

    def counted(self) -> str:
        """Text after its length in four hexadecimal digits."""
        return self.exactly(int(self.exactly(4), 16)).decode(errors="replace")

    def ask(self, service: str) -> None:
        """Send a request; ConnectionResetError with the server's words when it says FAIL (the phone is gone, or offline)."""
        request = service.encode()
        self.write(b"%04x" % len(request) + request)
        if self.exactly(4) != b"OKAY":
            raise ConnectionResetError(self.counted())

    def packet(self, kind: bytes, data: bytes) -> None:
        self.write(struct.pack("<4sI", kind, len(data)) + data)

    def data(self) -> bytes | None:
        """The next piece of a file, None after the last. Refused with the phone's words when it says FAIL."""
        kind, size = struct.unpack("<4sI", self.exactly(8))
        if kind == b"DONE":
            return None
        data = self.exactly(size)
        if kind != b"DATA":
            raise Refused(data.decode(errors="replace"))
        return data

    def accepted(self) -> None:
        """Read the phone's OKAY. Refused with its words when it says FAIL."""
        kind, size = struct.unpack("<4sI", self.exactly(8))
        if kind != b"OKAY":
            raise Refused(self.exactly(size).decode(errors="replace"))
