"""The link to a phone against AOSP's own adbd: who may in, files, full disk, cut and silent cables, adbd killed. No USB, no SELinux, and no time measured here is a phone's."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from phone_kit import Heard

from stages.devices.adb import connection as connection_module
from stages.devices.adb import open_connection
from stages.devices.adb.direct import tcp_link
from stages.devices.adb.link import Link
from stages.devices.adb.server import ServerLink
from stages.errors import DeviceFull, DeviceLost, DeviceNotFound, DeviceUnauthorised, NpasError
from stages.progress import Silent

pytestmark = pytest.mark.adbd
TMP = "/data/local/tmp"


@pytest.fixture(params=["tcp", "server"])
def connection(request, phone):
    """A phone reached directly, and through Debian's adb server."""
    if request.param == "server":
        request.getfixturevalue("adb_server").adb("connect", phone.address)
    with open_connection(f"adb:{phone.address}") as opened:
        assert opened.transport == request.param
        yield opened


@pytest.fixture
def payload(tmp_path):
    """3 MB that nothing compresses: several of adb's largest messages."""
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(3_000_017))
    return path


def through(relay):
    return open_connection(f"adb:127.0.0.1:{relay.port}")


class TestAuthorisation:
    def test_nobody_answers(self, start_phone):
        phone, heard = start_phone(trusted=False), Heard()
        link = tcp_link("127.0.0.1", phone.port)
        with pytest.raises(DeviceUnauthorised, match="has not accepted this computer's key"):
            link.open(heard, dialog_seconds=5.0)
        assert heard.lines == [f"Look at the phone {phone.address}: accept 'Allow USB debugging?' (waiting 5 s)"]

    def test_accepted(self, start_phone, answer, home):
        phone = start_phone(trusted=False)
        person, heard = answer(phone, "OK"), Heard()
        with open_connection(f"adb:{phone.address}", heard) as opened:
            assert opened.shell("echo in").text == "in\n"
        assert (home / ".android/adbkey.pub").read_text().split()[0][100:] in person.asked  # this adbd garbles the beginning of what it shows
        assert len(heard.lines) == 1

    def test_denied(self, start_phone, answer):
        phone = start_phone(trusted=False)
        answer(phone, "NO")
        with pytest.raises(DeviceUnauthorised) as refused:
            tcp_link("127.0.0.1", phone.port).open(Silent(), dialog_seconds=1.0)
        assert refused.value.exit_code == 5
        assert "Allow USB debugging" in refused.value.hint

    def test_a_trusted_computer_is_not_asked(self, phone):
        heard = Heard()
        with open_connection(f"adb:{phone.address}", heard):
            assert not heard.lines

    def test_an_adb_servers_phone(self, start_phone, answer, adb_server):
        phone, heard = start_phone(trusted=False), Heard()
        adb_server.adb("connect", phone.address)
        link = ServerLink(phone.address)
        with pytest.raises(DeviceUnauthorised):
            link.open(heard, dialog_seconds=5.0)
        assert len(heard.lines) == 1
        answer(phone, "OK")
        link.open(heard, dialog_seconds=10.0)
        assert link.run("echo in", 10.0) == b"in\n"


class TestShell:
    @pytest.mark.parametrize(
        ("command", "rc", "text"),
        [
            ("echo hi; exit 3", 3, "hi\n"),
            ("printf abc; echo err >&2; false", 1, "abcerr\n"),
            ("echo a # a comment", 0, "a\n"),
            ("cat <<E\nNPAS_RC:7\nE", 0, "NPAS_RC:7\n"),
            ("sh -c 'kill -9 $$'", 137, "Killed \n"),
            ("no-such-program", 127, None),
        ],
    )
    def test_status_and_text(self, connection, command, rc, text):
        result = connection.shell(command)
        assert result.rc == rc
        assert text is None or result.text == text

    def test_a_silent_command_ends_in_time_and_the_link_can_be_opened_again(self, connection):
        with pytest.raises(DeviceLost, match="has not answered for 1 s"):
            connection.shell("sleep 30", timeout_s=1)
        connection.reconnect()
        assert connection.shell("echo again").text == "again\n"
        assert (connection.losses, connection.reconnects) == (1, 1)

    def test_a_shell_that_is_killed_is_a_lost_link_not_an_empty_answer(self, connection):
        with pytest.raises(DeviceLost):
            connection.shell("kill -9 $$")

    def test_a_long_answer(self, connection):
        assert connection.shell("yes 0123456789 | head -n 100000").text == "0123456789\n" * 100_000


class TestFiles:
    def test_there_and_back(self, connection, payload, tmp_path):
        told = []
        connection.push(payload, f"{TMP}/a file", lambda done, total: told.append((done, total)))
        connection.pull(f"{TMP}/a file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()
        assert told[-1] == (3_000_017, 3_000_017)
        assert told == sorted(told)

    def test_an_empty_file(self, connection, tmp_path):
        (tmp_path / "empty").write_bytes(b"")
        connection.push(tmp_path / "empty", f"{TMP}/empty")
        connection.pull(f"{TMP}/empty", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b""

    def test_debians_adb_sees_the_same_file(self, phone, payload, adb_server, tmp_path):
        with open_connection(f"adb:{phone.address}") as direct:
            assert direct.transport == "tcp"
            direct.push(payload, f"{TMP}/witnessed")
            adb_server.adb("connect", phone.address)
            adb_server.adb("-s", phone.address, "pull", f"{TMP}/witnessed", tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == payload.read_bytes()
            assert direct.shell("echo still").rc == 0

    def test_pulling_a_missing_file_leaves_nothing_and_the_link_alive(self, connection, tmp_path):
        (tmp_path / "target").mkdir()
        with pytest.raises(NpasError, match="No such file"):
            connection.pull(f"{TMP}/missing", tmp_path / "target/file")
        assert list((tmp_path / "target").iterdir()) == []
        assert connection.shell("echo alive").rc == 0

    def test_a_refused_push(self, connection, payload):
        with pytest.raises(NpasError, match="would not write /proc/npas"):
            connection.push(payload, "/proc/npas")
        assert connection.shell("echo alive").rc == 0

    def test_what_arrives_damaged_is_noticed(self, connection, payload, monkeypatch):
        monkeypatch.setattr(connection_module, "_read", lambda path: b"other bytes")
        connection.push(payload, f"{TMP}/x")
        with pytest.raises(DeviceLost, match="arrived damaged"):
            connection._verify(f"{TMP}/x", payload.read_bytes())


class TestFullPhone:
    @pytest.fixture
    def small(self, start_phone):
        phone = start_phone(data_bytes=2 * 2**20)
        with open_connection(f"adb:{phone.address}") as opened:
            yield opened

    def test_is_noticed_before_anything_is_sent(self, small, payload):
        with pytest.raises(DeviceFull, match=r"no space on .* for payload \(2.9 MiB; 2.0 MiB are free\)") as full:
            small.push(payload, f"{TMP}/payload")
        assert full.value.exit_code == 7
        assert small.shell(f"ls {TMP}").text == ""

    def test_is_noticed_on_the_way_and_nothing_stays(self, small, payload, monkeypatch):
        answers = iter([None])
        parse = connection_module.parse_df
        monkeypatch.setattr(connection_module, "parse_df", lambda text: next(answers, parse(text)))  # another app takes the space after we looked
        with pytest.raises(DeviceFull):
            small.push(payload, f"{TMP}/payload")
        assert small.shell(f"ls {TMP}").text == ""


class TestBadCable:
    def test_cut_in_mid_command_is_noticed_at_once(self, relay):
        with through(relay) as opened:
            threading.Timer(0.5, relay.cut).start()
            start, work = time.monotonic(), time.process_time()
            with pytest.raises(DeviceLost, match="was cut"):
                opened.shell("sleep 60", timeout_s=60)
            assert time.monotonic() - start < 30
            assert time.process_time() - work < 2  # adb-shell's own transport spins
            opened.reconnect()
            assert opened.shell("echo again").text == "again\n"

    def test_silence_in_mid_command(self, relay):
        with through(relay) as opened:
            relay.silent = True
            with pytest.raises(DeviceLost, match="has not answered for 1 s"):
                opened.shell("echo hi", timeout_s=1)
            threading.Timer(1.0, relay.plug).start()
            opened.reconnect()
            assert opened.shell("echo again").text == "again\n"

    @pytest.mark.parametrize("fault", ["cut", "silent"])
    def test_fault_in_mid_push(self, relay, payload, fault, monkeypatch):
        monkeypatch.setattr("stages.devices.adb.direct.FILE_SECONDS", 1.0)
        with through(relay) as opened:
            relay.fault_after(1_000_000, fault)
            with pytest.raises(DeviceLost):
                opened.push(payload, f"{TMP}/payload")
            relay.plug()
            opened.reconnect()
            opened.push(payload, f"{TMP}/payload")
            assert opened.losses == 1

    def test_a_phone_that_stays_away(self, relay):
        with through(relay) as opened:
            relay.unplug()
            with pytest.raises(DeviceLost):
                opened.shell("echo hi")
            with pytest.raises(DeviceLost, match="has not come back within 1 s") as lost:
                opened.reconnect(patience_s=1)
            assert lost.value.exit_code == 6

    def test_nobody_there_at_the_start(self, relay):
        relay.unplug()
        with pytest.raises(DeviceNotFound, match="does not answer"):
            through(relay)

    def test_adbd_killed_and_back(self, connection, phone):
        connection.shell(f"echo kept > {TMP}/kept")
        threading.Timer(0.5, phone.kill_adbd).start()
        with pytest.raises(DeviceLost):
            connection.shell("sleep 60", timeout_s=60)
        if connection.transport == "tcp":  # the adb server tries again by itself, in its own time
            connection.reconnect()
            assert connection.shell(f"cat {TMP}/kept").text == "kept\n"


def test_the_links_satisfy_the_protocol(home):
    links: list[Link] = [tcp_link("127.0.0.1", 1), ServerLink("x")]
    assert [link.transport for link in links] == ["tcp", "server"]


def test_keys_are_made_private(home, phone, answer, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path / "fresh"))
    answer(phone, "OK")
    with open_connection(f"adb:{phone.address}"):
        assert (tmp_path / "fresh/.android/adbkey").stat().st_mode & 0o777 == 0o600
