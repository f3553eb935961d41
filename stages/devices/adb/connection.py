"""A phone as the rest of npas uses it: commands with an exit status, checked files, reconnecting. Imports errors, progress and this folder."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from stages.devices.adb.link import DIALOG_SECONDS, Link, Refused, cut
from stages.devices.adb.parse import parse_df
from stages.errors import DeviceFull, DeviceLost, DeviceNotFound, NpasError, UsageError
from stages.progress import Progress, Silent

T = TypeVar("T")
SHELL_SECONDS = 10.0
HASH_SECONDS = 120.0  # a large model on slow flash
PATIENCE_SECONDS = 60.0  # a phone that is plugged in again, or comes back into its network, needs some of this
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0)  # then the last, again and again
SPARE_BYTES = 64 * 1024  # file systems need a little more than the file
_STATUS = re.compile(rb"NPAS_RC:(\d+)\s*\Z")
_HASHES = {32: "md5", 40: "sha1", 64: "sha256"}  # hexadecimal digits -> algorithm


@dataclass(frozen=True)
class Result:
    """What a command printed (stdout and stderr together, as adb gives it) and its exit status; 128 + n for signal n."""

    rc: int
    text: str


class Connection:
    """One phone. Any method raises DeviceLost (exit 6) when the link goes; then ``reconnect`` and ask again. Programs that outlive a command must ignore SIGHUP and hold none of its terminal."""

    def __init__(self, link: Link, progress: Progress | None = None, dialog_seconds: float = DIALOG_SECONDS):
        self._link, self._progress = link, progress or Silent()
        self.losses = self.reconnects = 0
        link.open(self._progress, dialog_seconds)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Serial or HOST:PORT."""
        return self._link.name

    @property
    def transport(self) -> str:
        """tcp, usb or server."""
        return self._link.transport

    def shell(self, command: str, timeout_s: float = SHELL_SECONDS) -> Result:
        """Run ``command`` with the phone's sh. DeviceLost when it prints nothing for ``timeout_s`` or the link goes: the command may still be running there."""
        said = self._counted(lambda: self._link.run(f'( {command}\n); echo "NPAS_RC:$?"', timeout_s))  # adb's own protocol has no exit status
        status = _STATUS.search(said)
        if status is None:  # the phone hung up in mid-command
            self._link.close()
            self.losses += 1
            raise cut(self.name)
        return Result(int(status[1]), said[: status.start()].decode(errors="replace").replace("\r\n", "\n"))  # a terminal's line ends, before Android 7

    def push(self, local: str | Path, remote: str, progress: Callable[[int, int], None] | None = None, mode: int = 0o644) -> None:
        """Copy a file to the phone and compare checksums there. ``progress`` is told (bytes sent, bytes in all).

        DeviceFull (exit 7) before anything is sent when the free space is too small, or when it runs out on the way; what was sent is removed. NpasError when the phone refuses.
        """
        data = _read(local)
        self._need_space(remote, len(data), local)
        done = 0

        def sent(size: int) -> None:
            nonlocal done
            done += size
            if progress:
                progress(done, len(data))

        try:
            self._counted(lambda: self._link.send(BytesIO(data), remote, mode, sent))
        except Refused as refusal:
            self._link.open(self._progress)
            self.shell(f"rm -f {shlex.quote(remote)}")
            self._need_space(remote, len(data), local)
            if "space" in str(refusal).lower():  # whoever took it may have given it back by now
                raise _full(self.name, len(data), None, local) from refusal
            raise NpasError(f"{self.name} would not write {remote}: {refusal}.", "Check that the folder exists and that adb's shell may write there.") from refusal
        self._verify(remote, data)

    def pull(self, remote: str, local: str | Path) -> None:
        """Copy a file from the phone; ``local`` appears only when all of it is there. NpasError when the phone has no such file or may not read it."""
        local = Path(local)
        handle, name = tempfile.mkstemp(prefix=f".{local.name}.", dir=local.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                self._counted(lambda: self._link.receive(remote, file))
            os.replace(name, local)
        except Refused as refusal:
            self._link.open(self._progress)
            raise NpasError(f"{self.name} would not give {remote}: {refusal}.", "The program that should have written it may have failed.") from refusal
        finally:
            Path(name).unlink(missing_ok=True)

    def reconnect(self, patience_s: float = PATIENCE_SECONDS) -> None:
        """Open the link anew, trying for ``patience_s``. DeviceLost when the phone stays away, DeviceUnauthorised when it no longer trusts this computer."""
        end, tries = time.monotonic() + patience_s, 0
        while True:
            try:
                self._link.open(self._progress)
                self.reconnects += 1
                return
            except (DeviceNotFound, DeviceLost) as error:
                if time.monotonic() >= end:
                    raise DeviceLost(f"{self.name} has not come back within {patience_s:g} s.", "Plug it in again, then run the same command again; what was measured is kept.") from error
            time.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1

    def close(self) -> None:
        """End the connection. ``reconnect`` opens it again."""
        self._link.close()

    def _counted(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except DeviceLost:
            self.losses += 1
            raise

    def _need_space(self, remote: str, size: int, local: str | Path) -> None:
        answer = self.shell(f"df -k {shlex.quote(posixpath.dirname(remote) or '/')}")
        free = parse_df(answer.text) if answer.rc == 0 else None  # a df that can't tell is no reason not to try
        if free is not None and free < size + SPARE_BYTES:
            raise _full(self.name, size, free, local)

    def _verify(self, remote: str, data: bytes) -> None:
        path = shlex.quote(remote)
        answer = self.shell(f"sha256sum {path} 2>/dev/null || sha1sum {path} 2>/dev/null || md5sum {path}", HASH_SECONDS)  # Android 6 has no sha256sum
        there = (answer.text.split() or [""])[0]
        if len(there) not in _HASHES or answer.rc:
            raise NpasError(f"{self.name} can't tell the checksum of {remote}: {answer.text.strip()}.", "Its shell lacks sha256sum, sha1sum and md5sum; npas needs one of them.")
        if there != hashlib.new(_HASHES[len(there)], data).hexdigest():
            raise DeviceLost(f"{remote} arrived damaged on {self.name}.", "Try again; if it happens again, use another cable or port.")


def _read(local: str | Path) -> bytes:
    try:
        return Path(local).read_bytes()
    except OSError as error:
        raise UsageError(f"Can't read {local}: {error.strerror}.", "Make it first; the message of the command that needs it says how.") from error


def _full(name: str, size: int, free: int | None, local: str | Path) -> DeviceFull:
    has = f"; {free / 2**20:.1f} MiB are free" if free is not None else ""
    return DeviceFull(f"There is no space on {name} for {Path(local).name} ({size / 2**20:.1f} MiB{has}).", "Free some storage on the phone; 'adb shell rm -r /data/local/tmp/npas-*' removes what npas left there.")
