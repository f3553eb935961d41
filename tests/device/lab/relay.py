"""A bad cable: forwards TCP to a phone until told to cut, to fall silent or to be unplugged. Imports the standard library only."""

from __future__ import annotations

import socket
import struct
import threading

PIECE = 16 * 1024


class Relay:
    """Listens on ``port`` of the loopback interface and forwards to ``target``. ``passed`` counts the bytes that went to the phone."""

    def __init__(self, target: int):
        self.target, self.passed = target, 0
        self.silent = self.unplugged = False
        self._limit: tuple[int, str] | None = None
        self._lock, self._pairs = threading.Lock(), list[tuple[socket.socket, socket.socket]]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset (RST) every connection at both ends; new ones pass."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            _reset(end)

    def fault_after(self, size: int, fault: str) -> None:
        """``fault`` is "cut", "silent" or "unplug" and happens once ``size`` more bytes have gone to the phone."""
        self._limit = (self.passed + size, fault)

    def unplug(self) -> None:
        """Cut, and let nobody in until ``plug``."""
        self.unplugged = True
        self.cut()

    def plug(self) -> None:
        """Forward again, in every respect. What was silent stays lost: those connections are cut."""
        if self.silent:
            self.cut()
        self.silent = self.unplugged = False

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if self.unplugged:
                _reset(here)
                continue
            try:
                there = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                _reset(here)
                continue
            there.settimeout(None)
            with self._lock:
                self._pairs.append((here, there))
            for source, sink, counts in ((here, there, True), (there, here, False)):
                threading.Thread(target=self._forward, args=(source, sink, counts), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(PIECE):
                if counts:
                    self.passed += len(data)
                    if self._limit and self.passed >= self._limit[0]:
                        fault, self._limit = self._limit[1], None
                        {"cut": self.cut, "unplug": self.unplug, "silent": lambda: setattr(self, "silent", True)}[fault]()
                if not self.silent:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _reset(end: socket.socket) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
    except OSError:
        pass
    end.close()
