"""A phone that is a folder of this machine: the same commands through sh, native executables instead of ARM ones, and links that break when a test says so. And who hears what npas says of a phone, and zig's cache. See also lab/: a real adbd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from c_models import MANIFEST, c_source

from stages.devices import Linked
from stages.devices.adb.connection import Result
from stages.devices.android import Android
from stages.devices.runner import SOURCE, find_cc
from stages.errors import DeviceLost, NpasError
from stages.progress import Silent

PROPERTIES = {"ro.product.model": "folder", "ro.product.cpu.abi": "arm64-v8a", "ro.build.version.sdk": "31", "ro.hardware": "qemu"}
SYMBOLS = ("npas_manifest", "npas_workspace_bytes", "npas_run", "npas_profile")


class Heard(Silent):
    """Keeps what a person would read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class FolderPhone:
    """What stages.devices.adb.Connection offers, on the folder ``root``. ``faults``: numbers of the commands (counted from 1) whose answer gets lost."""

    transport = "folder"
    sh = "sh"  # its shell

    def __init__(self, root: Path, name: str = "folder"):
        self.root, self.name = root, name
        self.losses = self.reconnects = self.asked = 0
        self.away = 0.0
        self.faults: set[int] = set()
        self.log: list[str] = []
        self.properties = dict(PROPERTIES)
        self.tools = root / "bin"
        self.tools.mkdir(parents=True)
        (root / "tmp").mkdir()
        self.tool("getprop", "cat <<'E'\n" + "\n".join(f"[{k}]: [{v}]" for k, v in self.properties.items()) + "\nE")

    def tool(self, name: str, script: str) -> None:
        """A program of the phone."""
        (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.tools / name).chmod(0o755)

    def shell(self, command: str, timeout_s: float = 10.0) -> Result:
        self.asked += 1
        self.log.append(command)
        done = subprocess.run([self.sh, "-c", command], env=os.environ | {"PATH": f"{self.tools}:/usr/bin:/bin"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s)
        self._lose()
        return Result(done.returncode, done.stdout.decode())

    def push(self, local, remote, progress=None, mode=0o644):
        shutil.copyfile(local, remote)
        os.chmod(remote, mode)

    def pull(self, remote, local):
        if not os.path.exists(remote):
            raise NpasError(f"{self.name} would not give {remote}: No such file.")
        shutil.copyfile(remote, local)

    def reconnect(self, patience_s: float = 60.0) -> None:
        if self.away:
            raise DeviceLost(f"{self.name} has not come back.")
        self.reconnects += 1

    def close(self) -> None:
        pass

    def _lose(self) -> None:
        if self.asked in self.faults or self.away:
            self.losses += 1
            raise DeviceLost(f"The link to {self.name} was cut.")

    def jobs(self) -> list[Path]:
        """The folders that jobs left."""
        return sorted((self.root / "tmp").iterdir())

    def device(self, said: list[str] | None = None) -> Android:
        return Android(lambda: self, (said if said is not None else []).append, str(self.root / "tmp"))


def linked(folder: Path, cc: Sequence[str] = (), **sources: str) -> list[Linked]:
    """One static executable out of the C sources of networks, by name, as compiler.cross.write_runner makes one; ``cc`` compiles for another machine than this one."""
    cc = list(cc) or find_cc()
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for name, source in sources.items():
        (folder / f"{name}.c").write_text(source)
        subprocess.run([*cc, "-O1", "-c", *(f"-D{symbol}={name}_{symbol}" for symbol in SYMBOLS), "-o", folder / f"{name}.o", folder / f"{name}.c"], check=True)
        objects.append(folder / f"{name}.o")
    (folder / "models.inc").write_text("".join(f"MODEL({name})\n" for name in sources))
    command = [*cc, "-O1", "-static", f"-I{folder}", '-DNPAS_STATIC="models.inc"', SOURCE, *objects, "-lm", "-o", folder / "runner"]
    subprocess.run(command, check=True)
    return [Linked(folder / "runner", name) for name in sources]


__all__ = ["MANIFEST", "FolderPhone", "Heard", "c_source", "linked"]
