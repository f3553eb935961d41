"""Which phone a spec means, this computer's key, and USB as far as it can be seen without a phone."""

from __future__ import annotations

import os
import sys

import pytest

from stages.devices import list_devices
from stages.devices.adb import discovery, keys, open_connection
from stages.devices.adb.discovery import Found, address, choose, find
from stages.devices.adb.usb import usb_serials
from stages.errors import DeviceNotFound, UsageError


@pytest.fixture
def offered(monkeypatch):
    """An adb server with two phones, of which USB shows one as well."""
    monkeypatch.setattr(discovery, "server_devices", lambda: {"A": {"state": "device"}, "B": {"state": "unauthorized"}})
    monkeypatch.setattr(discovery, "usb_serials", lambda: {"A": "", "C": ""})


def test_a_servers_phone_goes_through_the_server(offered):
    assert [(p.spec, p.transport, p.state) for p in find(["10.0.0.1:5555"])] == [
        ("adb:A", "server", "ready"), ("adb:B", "server", "unauthorised"), ("adb:C", "usb", ""), ("adb:10.0.0.1:5555", "tcp", ""),
    ]  # fmt: skip
    assert choose("adb:A").link().transport == "server"
    assert choose("adb:10.0.0.2:5555").link().name == "10.0.0.2:5555"


def test_several_and_none(offered, monkeypatch):
    with pytest.raises(DeviceNotFound, match="There are 3 phones") as several:
        choose("adb")
    assert several.value.exit_code == 4
    assert several.value.hint == "Choose one: adb:A (ready), adb:B (unauthorised), adb:C (usb)."
    with pytest.raises(DeviceNotFound, match="no phone 'Z'"):
        choose("adb:Z")
    monkeypatch.setattr(discovery, "find", lambda hosts: [Found("A", "tcp", "", lambda: None)])
    assert choose("adb").serial == "A"
    monkeypatch.setattr(discovery, "find", lambda hosts: [])
    with pytest.raises(DeviceNotFound, match="There is no phone"):
        choose("adb")


@pytest.mark.parametrize(("text", "place"), [("10.0.0.1:5555", ("10.0.0.1", 5555)), ("[::1]:5555", ("::1", 5555)), ("phone.local:1", ("phone.local", 1)), ("A1B2", None), ("h:0", None), ("h:99999", None)])
def test_addresses(text, place):
    assert address(text) == place


def test_hosts_are_checked():
    with pytest.raises(UsageError, match="not HOST:PORT"):
        find(["192.168.1.5"])


def test_usb_phones_are_seen_without_libusb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usb1", None)
    for name, (kind, sub, protocol) in {"1-2:1.0": ("ff", "42", "01"), "1-3:1.0": ("03", "01", "02")}.items():
        (tmp_path / name).mkdir()
        for field, value in zip(("Class", "SubClass", "Protocol"), (kind, sub, protocol), strict=True):
            (tmp_path / name / f"bInterface{field}").write_text(f"{value}\n")
        (tmp_path / name.partition(":")[0]).mkdir()
        (tmp_path / name.partition(":")[0] / "serial").write_text("0A1B\n")
    assert usb_serials(tmp_path) == {"0A1B": "needs an adb server or npas[usb]"}


class TestKeys:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("ADB_VENDOR_KEYS", raising=False)

    def test_a_key_is_made_once_and_only_for_its_owner(self, tmp_path):
        (path,) = keys.key_paths()
        first = path.read_bytes()
        assert path == tmp_path / ".android/adbkey"
        assert path.stat().st_mode & 0o777 == 0o600
        assert keys.key_paths() == [path]
        keys.make_key(path)  # as a second process would at the same time
        assert path.read_bytes() == first
        assert sorted(os.listdir(path.parent)) == ["adbkey", "adbkey.pub"]

    def test_the_public_half_is_made_again(self):
        (path,) = keys.key_paths()
        public = keys.public(path).read_bytes()
        keys.public(path).unlink()
        (signer,) = keys.signers()
        assert signer.GetPublicKey().split()[0] == public.split()[0]

    def test_vendor_keys_come_first(self, tmp_path, monkeypatch):
        keys.make_key(tmp_path / "ci-key")
        monkeypatch.setenv("ADB_VENDOR_KEYS", f"{tmp_path / 'ci-key'}{os.pathsep}{tmp_path / 'missing'}")
        assert keys.key_paths() == [tmp_path / "ci-key", tmp_path / ".android/adbkey"]

    def test_a_damaged_key(self, tmp_path):
        (tmp_path / ".android").mkdir()
        (tmp_path / ".android/adbkey").write_text("no key\n")
        (tmp_path / ".android/adbkey.pub").write_text("no key\n")
        with pytest.raises(UsageError, match="not a private key"):
            keys.signers()


@pytest.mark.adbd
class TestRealPhones:
    def test_two_phones(self, start_phone, adb_server):
        one, two = start_phone(**{"ro.serialno": "ONE", "ro.product.model": "first"}), start_phone(**{"ro.serialno": "TWO", "ro.product.model": "second"})
        with pytest.raises(DeviceNotFound, match="There are 2 phones"):
            open_connection("adb", hosts=[one.address, two.address])
        rows = {row["spec"]: row for row in list_devices([one.address, two.address])[1:]}
        assert {spec: row["model"] for spec, row in rows.items()} == {f"adb:{one.address}": "npas-lab first", f"adb:{two.address}": "npas-lab second"}
        assert all(row["abi"] == "arm64-v8a" and row["state"] == "ready" and row["cores"] == os.cpu_count() for row in rows.values())

    def test_states(self, start_phone, adb_server, phone):
        stranger, gone = start_phone(trusted=False), start_phone()
        gone.stop()
        adb_server.adb("connect", phone.address)
        rows = {row["spec"]: (row["transport"], row["state"]) for row in list_devices([stranger.address, gone.address])[1:]}
        assert rows == {f"adb:{phone.address}": ("server", "ready"), f"adb:{stranger.address}": ("tcp", "unauthorised"), f"adb:{gone.address}": ("tcp", "offline")}

    def test_an_identity_is_the_same_over_any_link(self, start_phone, adb_server):
        from stages.devices.adb import identity

        phone = start_phone(**{"ro.serialno": "ONE"})
        with open_connection(f"adb:{phone.address}") as direct:
            first = identity(direct)
        adb_server.adb("connect", phone.address)
        with open_connection(f"adb:{phone.address}") as through:
            assert through.transport == "server"
            assert identity(through) == first
        assert "ONE" not in str(first)
        assert first["emulated"] is True

    def test_condition(self, phone):
        from pathlib import Path

        from stages.devices.adb.facts import condition

        for name in ("battery", "thermalservice", "power"):
            phone.service(name, (Path(__file__).parent / "samples" / f"{name}.txt").read_text())
        with open_connection(f"adb:{phone.address}") as opened:
            now = condition(opened)
        assert (now["battery"]["level"], now["thermal"]["status"], now["screen_on"]) == (87, 2, False)
        assert 0 < now["free_bytes"] <= 64 * 2**20


@pytest.mark.device
def test_a_phone_that_is_plugged_in():
    """The one test that needs a real phone: NPAS_PHONE=adb:SERIAL pytest -m device. Nothing else here says anything of one."""
    spec = os.environ.get("NPAS_PHONE")
    if not spec:
        pytest.skip("no phone: set NPAS_PHONE to what 'npas devices' lists, e.g. adb:SERIAL")
    from stages.devices.adb import facts

    with open_connection(spec) as opened:
        assert opened.shell("exit 3").rc == 3
        told = facts(opened)
    assert told["emulated"] is False
    assert told["cores"] > 1
    assert told["free_bytes"]
