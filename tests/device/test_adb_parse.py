"""The parsers of what Android's commands print, on the samples in samples/ (see the README there) and on what a phone may leave out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.devices.adb import parse
from stages.devices.adb.server import parse_devices

PARSERS = [parse.parse_getprop, parse.parse_df, parse.parse_battery, parse.parse_thermal, parse.parse_screen, parse.parse_clusters, parse_devices]


def sample(name):
    return (Path(__file__).parent / "samples" / f"{name}.txt").read_text()


def test_battery():
    assert parse.parse_battery(sample("battery")) == {"level": 87, "celsius": 28.6, "plugged": True, "status": "charging"}
    assert parse.parse_battery("  level: 50\n  scale: 200\n") == {"level": 25, "celsius": None, "plugged": False, "status": "unknown"}
    assert parse.parse_battery("Can't find service: battery\n") is None


def test_thermal_takes_the_current_temperatures_not_the_cached_ones():
    assert parse.parse_thermal(sample("thermalservice")) == {"status": 2, "celsius": {"CPU0": 61.5, "VIRTUAL-SKIN": 43.2}}
    assert parse.parse_thermal("Can't find service: thermalservice\n") is None
    assert parse.parse_thermal("Thermal Status: 0\nHAL Ready: false\n") == {"status": 0, "celsius": {}}


def test_screen():
    assert parse.parse_screen(sample("power")) is False
    assert parse.parse_screen("  mWakefulness=Awake\n") is True
    assert parse.parse_screen("Display Power: state=ON\n") is True
    assert parse.parse_screen("") is None


def test_properties_with_line_ends_and_without_values():
    props = parse.parse_getprop(sample("getprop"))
    assert props["ro.soc.model"] == "SC9000"
    assert props["persist.sys.boot.reason.history"] == "reboot,shell,1700000000\nreboot,1690000000"
    assert "ro.vendor.empty" not in props


@pytest.mark.parametrize("name", ["df", "df-wrapped"])
def test_free_space(name):
    assert parse.parse_df(sample(name)) == 66890180 * 1024


def test_free_space_that_nobody_tells():
    assert parse.parse_df("df: /nowhere: No such file or directory\n") is None
    assert parse.parse_df("Filesystem Size Used Free Blksize\n/data 12G 3G 9G 4096\n") is None  # Android 5


def test_clusters_group_cores_and_keep_unreadable_ones():
    text = "cpu0 1800000\ncpu1 1800000\ncpu10 2800000\ncpu2\n"
    assert parse.parse_clusters(text) == [{"cores": [10], "max_khz": 2800000}, {"cores": [0, 1], "max_khz": 1800000}, {"cores": [2], "max_khz": None}]


def test_an_adb_servers_list():
    found = parse_devices(sample("devices-l"))
    assert {serial: row["state"] for serial, row in found.items()} == {
        "0A1B2C3D": "device", "192.168.1.5:5555": "offline", "emulator-5554": "unauthorized", "0123456789ABCDEF": "no permissions"
    }  # fmt: skip
    assert found["0A1B2C3D"]["model"] == "Phone_6"


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.__name__)
@given(text=st.text(st.sampled_from("[]:{}=,. \n\tabcTM019%-"), max_size=200))
def test_nothing_that_a_phone_prints_is_a_crash(parser, text):
    parser(text)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", [path.stem for path in sorted((Path(__file__).parent / "samples").glob("*.txt"))])
def test_no_sample_cut_anywhere_is_a_crash(parser, name):
    text = sample(name)
    for end in range(0, len(text), 7):
        parser(text[:end])
