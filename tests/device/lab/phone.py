"""Phones for the tests: AOSP's adbd in a sandbox of this machine, Debian's adb server, and why they can't be had here. Imports the standard library and psutil only."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

LAB = Path(__file__).parent
CACHE = Path(os.environ.get("NPAS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npas") / "adbd"  # read before a test moves them
PROPS = {"ro.product.manufacturer": "npas-lab", "ro.product.model": "npas-lab-phone", "ro.product.cpu.abi": "arm64-v8a", "ro.build.version.sdk": "31", "ro.hardware": "qemu"}
PROGRAMS = ("adb", "bwrap", "mksh", "/usr/bin/python3", "qemu-aarch64-static", "toybox", "unshare")
INSTALL = "apt-get install --no-install-recommends $(cat tests/device/lab/packages.txt)"
START_SECONDS = 20.0


class Unavailable(Exception):
    """This machine can't run the lab; ``str(error)`` says why and what to do."""


@functools.cache
def adbd() -> Path:
    """The adbd binary, built at the first call ever (about 3 minutes, from Debian's sources) and cached. Unavailable."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise Unavailable(f"not installed: {', '.join(missing)} (Debian 12: {INSTALL})")
    mount = "unshare -U -r -m mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
    if subprocess.run(mount.split(), capture_output=True, check=False).returncode:
        raise Unavailable(f"no user namespaces with binfmt_misc (Linux {platform.release()}; 6.7 or newer with unprivileged user namespaces is needed)")
    key = hashlib.sha256(b"".join((LAB / name).read_bytes() for name in ("build_adbd.sh", "build_adbd.mk"))).hexdigest()[:12]
    folder = CACHE / key
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be building it
        if not (folder / "adbd").exists():
            log = folder / "build.log"
            with open(log, "w") as out:
                rc = subprocess.run(["nice", "bash", LAB / "build_adbd.sh", folder], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=1800, check=False).returncode
            if rc:
                last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise Unavailable(f"adbd can't be built here (it needs Debian 12 and its source registry): {last} ({log})")
    return folder / "adbd"


class Phone:
    """One adbd on ``port`` of the loopback interface, with a /data of its own. What is on it is gone after ``stop``."""

    def __init__(self, state: Path, data_bytes: int, props: Mapping[str, str]):
        self.state, self.port = state, free_port()
        (state / "services").mkdir(parents=True)
        (state / "props").write_text("".join(f"[{name}]: [{value}]\n" for name, value in props.items()))
        command = ["bash", LAB / "phone.sh", adbd(), str(self.port), state, str(data_bytes)]
        with open(state / "adbd.log", "w") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def authorise(self, public_key: Path) -> None:
        """Trust a computer, as after "Always allow"."""
        with open(self.state / "adb_keys", "a") as keys:
            keys.write(public_key.read_text().strip() + "\n")

    def service(self, name: str, text: str) -> None:
        """What `dumpsys NAME` prints from now on."""
        (self.state / "services" / name).write_text(text)

    def wait(self) -> None:
        """Until adbd listens."""
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"adbd did not start: {(self.state / 'adbd.log').read_text()[-500:]}")

    def kill_adbd(self) -> None:
        """adbd dies; the phone's init starts it again, and detached programs and files live on."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):  # others may end at any moment
                if process.name() == "adbd":
                    process.send_signal(signal.SIGKILL)

    def processes(self) -> list[str]:
        """Command lines of what runs on the phone, beside its init and adbd."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it may just have ended
                if process.name() not in ("adbd", "bwrap", "python3"):
                    found.append(" ".join(process.cmdline()))
        return [line for line in found if line]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # bwrap: what is inside dies with it
            self._process.wait()


class Dialog(threading.Thread):
    """The person who sees "Allow USB debugging?" and says ``answer`` ("OK" or "NO"); ``asked`` is the public key that was shown. Starts at once."""

    def __init__(self, phone: Phone, answer: str):
        super().__init__(daemon=True)
        self.asked = ""
        self._answer, self._socket = answer, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = os.open(phone.state / "sock", os.O_PATH)
        self._socket.connect(f"/proc/self/fd/{folder}/adbd")  # the path itself may be longer than the 107 characters that a socket's name may have
        os.close(folder)
        self.start()

    def run(self) -> None:
        try:
            message = self._socket.recv(8192)
            self.asked = message[2:].decode(errors="replace")  # after "PK"
            self._socket.send(self._answer.encode())
            self._socket.recv(1)  # until close: adbd forgets the answer of a framework that has gone
        except OSError:
            pass

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class AdbServer:
    """Debian's adb, its server on a port of its own (never 5037), with ``home`` for its key."""

    def __init__(self, home: Path):
        self.port = free_port()
        self._env = {**os.environ, "HOME": str(home), "ANDROID_ADB_SERVER_PORT": str(self.port), "ADB_LOCAL_TRANSPORT_MAX_PORT": "5554"}  # 5554: look for no emulators
        self._process = subprocess.Popen(["adb", "nodaemon", "server"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._env, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError("the adb server did not start")

    def adb(self, *words: str | Path) -> str:
        """What `adb WORDS` prints, stdout and stderr together."""
        return subprocess.run(["adb", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._env, timeout=60, check=False).stdout

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
