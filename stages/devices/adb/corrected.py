"""adb-shell 0.4.4 with the faults corrected that a real adbd brings out. Imports adb-shell, so import it inside functions."""

from __future__ import annotations

import socket
from typing import Any

from adb_shell import constants
from adb_shell.adb_device import AdbDevice
from adb_shell.adb_message import AdbMessage
from adb_shell.transport.base_transport import BaseTransport


class Device(AdbDevice):
    """AdbDevice that hears a phone refuse a file in mid-push. Its own one, while it waits for OKAY, drops whatever else comes: the refusal ("No space left on device"),
    which the phone then waits for ever to have acknowledged, or half of it, whose words it takes for numbers (KeyError).
    """

    def _filesync_flush(self, adb_info: Any, filesync_info: Any) -> None:
        message = AdbMessage(constants.WRTE, adb_info.local_id, adb_info.remote_id, filesync_info.send_buffer[: filesync_info.send_idx])
        self._io_manager.send(message, adb_info)
        command, data = self._read_until([constants.OKAY, constants.WRTE], adb_info)
        while command == constants.WRTE:
            filesync_info.recv_buffer += data  # read after the last piece is sent; the phone swallows the rest until then
            command, data = self._read_until([constants.OKAY, constants.WRTE], adb_info)
        filesync_info.send_idx = 0


class TcpTransport(BaseTransport):
    """Bytes to and from HOST:PORT. Unlike adb_shell.transport.tcp_transport (0.4.4) it notices the end of the connection (there: spins at full load
    until the read times out) and writes all that it is given (there: whatever one send() takes, after which the phone waits for the rest for ever).
    """

    def __init__(self, host: str, port: int):
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def connect(self, transport_timeout_s: float | None) -> None:
        """OSError when nobody answers."""
        self._socket = socket.create_connection(self._address, timeout=transport_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a message is two writes: don't wait for the acknowledgement of the first

    def close(self) -> None:
        """Harmless when there is no connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None) -> bytes:
        """At least one byte. ConnectionResetError at the end of the connection, TimeoutError."""
        data = self._open(transport_timeout_s).recv(numbytes)
        if not data:
            raise ConnectionResetError("end of the connection")
        return data

    def bulk_write(self, data: bytes, transport_timeout_s: float | None) -> int:
        """All of ``data``. OSError when the connection is gone, TimeoutError."""
        self._open(transport_timeout_s).sendall(data)
        return len(data)

    def _open(self, timeout: float | None) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError("not connected")
        self._socket.settimeout(timeout)
        return self._socket
