"""Fixtures of the tests that talk to a real adbd (marker adbd): phones, people who answer their dialog, bad cables, Debian's adb server, ARM programs for phones. Nothing here touches port 5037 or the user's keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.phone import PROPS, AdbServer, Dialog, Phone, Unavailable, adbd
from lab.relay import Relay
from phone_kit import c_source, linked

from stages.artifacts import cache_dir
from stages.compiler import toolchain
from stages.devices import Linked
from stages.devices.adb.keys import make_key

MIB = 2**20


@pytest.fixture(scope="session")
def lab() -> None:
    """Skips where the lab can't run, and says why."""
    try:
        adbd()
    except Unavailable as why:
        pytest.skip(f"no phone lab: {why}")


@pytest.fixture(scope="session")
def zig_cache() -> Path:
    """zig's cache of whoever runs the tests, whatever home folder a test has: musl takes zig minutes to compile, so it is done once a machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NPAS_CACHE", raising=False)
        return cache_dir("zig")


@pytest.fixture(scope="session")
def _key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key pair, made once: it takes a while."""
    path = tmp_path_factory.mktemp("key") / "adbkey"
    make_key(path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _key: Path) -> Path:
    """An own home folder whose ~/.android/adbkey is a computer that phones trust."""
    folder = tmp_path / "home"
    shutil.copytree(_key.parent, folder / ".android")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("ADB_VENDOR_KEYS", raising=False)
    return folder


@pytest.fixture
def start_phone(lab: None, home: Path, tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """``start_phone(data_bytes=64 MiB, trusted=True, **{"ro.serialno": "A"})``: another phone each time."""
    with ExitStack() as stack:
        count = 0

        def start(data_bytes: int = 64 * MIB, trusted: bool = True, **props: str) -> Phone:
            nonlocal count
            count += 1
            phone = Phone(tmp_path / f"phone{count}", data_bytes, PROPS | props)
            stack.callback(phone.stop)
            if trusted:
                phone.authorise(home / ".android" / "adbkey.pub")
            return phone

        yield start


@pytest.fixture
def phone(start_phone: Callable[..., Phone]) -> Phone:
    """A phone with 64 MiB of storage that trusts this computer."""
    return start_phone()


@pytest.fixture
def answer() -> Iterator[Callable[[Phone, str], Dialog]]:
    """``answer(phone, "OK")`` or "NO": the person at the phone's dialog."""
    with ExitStack() as stack:

        def person(phone: Phone, word: str) -> Dialog:
            dialog = Dialog(phone, word)
            stack.callback(dialog.close)
            return dialog

        yield person


@pytest.fixture
def relay(phone: Phone) -> Iterator[Relay]:
    """A bad cable to ``phone``."""
    cable = Relay(phone.port)
    yield cable
    cable.close()


@pytest.fixture
def adb_server(lab: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    """Debian's adb server, which npas finds by ANDROID_ADB_SERVER_PORT."""
    server = AdbServer(home)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory, zig_cache: Path) -> Iterator[Callable[..., list[Linked]]]:
    """``arm(model=..., dense=...)``: those C sources in one ARM executable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NPAS_CACHE", raising=False)
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(zig_cache))
        patch.setenv("ZIG_LOCAL_CACHE_DIR", str(tmp_path_factory.mktemp("zig")))
        toolchain.prepare(toolchain.STATIC, print)
        cc = [*toolchain.zig(toolchain.STATIC), "-fno-sanitize=undefined"]
        yield lambda **sources: linked(tmp_path_factory.mktemp("arm"), cc, **sources)


@pytest.fixture(scope="module")
def networks(arm: Callable[..., list[Linked]]) -> list[Linked]:
    """A network of 2 ms and a dense one of 6 ms, for phones."""
    return arm(model=c_source(2.0, ms=2.0), dense=c_source(3.0, ms=6.0))
