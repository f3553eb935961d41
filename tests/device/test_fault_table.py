"""The fault table of docs/phone.md: every row names tests that exist, and the sentences in it are what a person reads when the fault happens (marker adbd)."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from phone_kit import Heard, c_source

from stages.devices import Expected, TimingProtocol, android, open_device
from stages.devices.adb import connection as connection_module
from stages.devices.adb.direct import tcp_link
from stages.errors import NpasError
from stages.progress import Silent

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs/phone.md").read_text()
X = np.array([[1.0, -2.0, 0.5, 8.0]], dtype=np.float32)
QUICK = TimingProtocol(runs=12, warmup=2, warmup_seconds=0.0)


def rows():
    """fault -> (what you see, exit, what npas does, tests) of the table with these columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines if len(line) == 5 and not line[0].startswith("-") and line[0] != "fault"}


def test_every_fault_of_the_table_has_tests_that_exist():
    sources = {path.name: path.read_text() for path in (ROOT / "tests/device").glob("test_*.py")} | {path.name: path.read_text() for path in (ROOT / "tests/unit").glob("test_*.py")}
    assert len(rows()) >= 20
    for fault, (_, _, _, tests) in rows().items():
        named = re.findall(r"`(test_\w+)(?:::(\w+))?`", tests)
        assert named, f"no test for: {fault}"
        for file, test in named:
            assert f"{file}.py" in sources and (not test or f"def {test}(" in sources[f"{file}.py"] or f"class {test}" in sources[f"{file}.py"]), f"{fault}: {file}::{test}"


@pytest.fixture
def check(monkeypatch):
    """``check(fault, call, phone address, ...)``: the row's sentence is what ``call`` raises, or what it says when nothing is lost."""

    def checked(fault, call, *names, heard=None):
        said, code = heard.lines if heard else [], ""
        try:
            call()
        except NpasError as error:
            said, code = [*said, error.message], str(error.exit_code)
        text = " / ".join(said)
        for name in names:
            text = text.replace(name, "X")
        print(f"{fault}\n    {text} [{code or 0}]")
        sentence, exit_code, _, _ = rows()[fault]
        sentence, text = (re.sub(r"for \d+ s", "for some seconds", words) for words in (sentence, text))  # whichever question was open when the link fell silent
        assert sentence in text and exit_code == (code or "0")

    return checked


@pytest.mark.adbd
class TestSentences:
    def test_keys(self, start_phone, answer, check):
        phone, heard = start_phone(trusted=False), Heard()
        check("nobody accepts the key", lambda: tcp_link("127.0.0.1", phone.port).open(heard, dialog_seconds=3.0), phone.address)
        phone = start_phone(trusted=False)
        answer(phone, "NO")
        check("someone refuses the key", lambda: tcp_link("127.0.0.1", phone.port).open(Silent(), dialog_seconds=3.0), phone.address)
        phone = start_phone(trusted=False)
        answer(phone, "OK")
        heard = Heard()
        check("someone accepts the key", open_device(f"adb:{phone.address}", heard).probe, phone.address, heard=heard)

    def test_two_phones(self, start_phone, check):
        hosts = [start_phone().address for _ in range(2)]
        check("two phones, `--device adb`", open_device("adb", hosts=hosts).probe)

    def test_files(self, start_phone, networks, check, monkeypatch):
        full = start_phone(data_bytes=64 * 1024)
        check("the phone is full", lambda: open_device(f"adb:{full.address}").measure(networks, [X], QUICK), full.address)
        phone = start_phone()
        verify, push = connection_module.Connection._verify, connection_module.Connection.push
        monkeypatch.setattr(connection_module.Connection, "_verify", lambda self, remote, data: verify(self, remote, data + b"!"))
        check("a file arrives damaged", lambda: open_device(f"adb:{phone.address}").measure(networks, [X], QUICK), phone.address)
        monkeypatch.setattr(connection_module.Connection, "_verify", verify)
        monkeypatch.setattr(connection_module.Connection, "push", lambda self, local, remote, progress=None, mode=0o644: push(self, local, remote, progress, 0o644))
        check("no permission to execute", lambda: open_device(f"adb:{phone.address}").measure(networks, [X], QUICK), phone.address)

    def test_programs(self, phone, arm, networks, check, tmp_path):
        device = open_device(f"adb:{phone.address}")
        (tmp_path / "runner").write_bytes(networks[0].program.read_bytes()[:9000])
        check("a truncated executable", lambda: device.measure([type(n)(tmp_path / "runner", n.name) for n in networks], [X], QUICK), phone.address)
        check("a mask with a core that the phone hasn't", lambda: device.measure(networks, [X], TimingProtocol(runs=12, cluster="0x1000000000000000")), phone.address)
        hangs = arm(model=c_source(2.0, body="if (calls > 5) for (;;);"))
        check("a network hangs", lambda: device.measure(hangs, [X], TimingProtocol(runs=50, warmup=1, warmup_seconds=0.0, timeout_seconds=2.0)), phone.address)
        check("wrong output", lambda: device.measure(networks, [X], QUICK, Expected(("pruned", "dense"), [(X,), (3 * X,)], 1e-3)), phone.address)
        device.close()

    def test_links(self, phone, relay, networks, check, monkeypatch):
        monkeypatch.setattr("stages.devices.job.Job.LOOK_SECONDS", 2.0)
        name, slow = f"127.0.0.1:{relay.port}", TimingProtocol(runs=400, warmup=2, warmup_seconds=0.0)
        wait = android._wait

        def during(fault):
            def waiting(*arguments):
                fault()  # before the first look, however long the start took
                return wait(*arguments)

            monkeypatch.setattr(android, "_wait", waiting)

        def silence():
            relay.silent = True
            threading.Timer(4.0, relay.plug).start()

        for row, fault in (("the cable is cut in mid-run", relay.cut), ("the link falls silent in mid-run", silence), ("adbd is killed in mid-run", phone.kill_adbd)):
            during(fault)
            heard = Heard()
            device = open_device(f"adb:{name}", heard)
            check(row, lambda device=device: device.measure(networks, [X], slow), name, heard=heard)
            device.close()

    def test_a_stale_job(self, phone, networks, check, monkeypatch):
        slow = TimingProtocol(runs=800, warmup=1, warmup_seconds=0.0)

        class Killed(BaseException):
            pass

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(android, "_wait", lambda *_: (_ for _ in ()).throw(Killed))
            patch.setattr("stages.devices.job.Job.clear", lambda self: None)
            open_device(f"adb:{phone.address}").measure(networks, [X], slow)
        heard = Heard()
        check("npas was killed and left its job", lambda: open_device(f"adb:{phone.address}", heard).measure(networks, [X], slow), phone.address, heard=heard)
