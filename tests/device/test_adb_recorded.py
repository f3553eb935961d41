"""The parsers on what real devices have printed (samples/recorded, with sources): ten postings, none of them made for these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.devices.adb import parse
from stages.devices.adb.connection import Result
from stages.devices.adb.facts import _QUESTIONS, facts
from stages.devices.adb.server import parse_devices
from stages.devices.probe import parse_cpuinfo

RECORDED = Path(__file__).parent / "samples" / "recorded"


def sample(name):
    return (RECORDED / f"{name}.txt").read_text()


def test_every_sample_names_its_source():
    readme = (RECORDED / "README.md").read_text()
    assert all(f"| {path.name} |" in readme for path in RECORDED.glob("*.txt")) and readme.count("https://") == len(list(RECORDED.glob("*.txt"))) + 1


@pytest.mark.parametrize(
    ("name", "battery"),
    [
        ("battery-galaxy-swelling", {"level": 100, "celsius": 30.9, "plugged": True, "status": "full"}),
        ("battery-oneplus7", {"level": 77, "celsius": 29.4, "plugged": False, "status": "discharging"}),
        ("battery-pixel-c", {"level": 19, "celsius": 27.5, "plugged": True, "status": "charging"}),
    ],
)
def test_batteries(name, battery):
    assert parse.parse_battery(sample(name)) == battery


def test_what_a_maker_adds_below_does_not_replace_what_android_says():
    assert parse.parse_battery(sample("battery-galaxy-swelling") + "  level: 3\n  temperature: 534\n")["level"] == 100


def test_sensors_that_are_not_there_say_zero_and_a_cut_log_has_none():
    assert parse.parse_thermal(sample("thermal-galaxy-a52")) == {"status": 0, "celsius": {"AP": 25.6, "BAT": 23.8, "PA": 25.7, "SUBBAT": 0.0}}
    assert parse.parse_thermal(sample("thermal-shield")) == {"status": 0, "celsius": {}}  # the cached 37 degrees were 66.5 in truth, says the posting


@pytest.mark.parametrize(
    ("name", "soc", "dot_products", "half_precision"),
    [
        ("cpuinfo-mi8", "0x51 0x803 + 0x51 0x802", False, True),
        ("cpuinfo-galaxy-j6", "Qualcomm Technologies, Inc MSM8917", False, False),
        ("cpuinfo-dimensity-7100", "0x41 0xd05 + 0x41 0xd41", True, True),
    ],
)
def test_processors(name, soc, dot_products, half_precision):
    found = parse_cpuinfo(sample(name))
    assert found["soc"] == soc and ("asimddp" in found["isa"]) is dot_products and ("asimdhp" in found["isa"]) is half_precision and "asimd" in found["isa"]
    assert not found["virtual"]


def test_a_pixels_properties():
    props = parse.parse_getprop(sample("getprop-pixel6pro"))
    assert (props["ro.soc.manufacturer"], props["ro.soc.model"], props["ro.product.vendor.model"]) == ("Google", "Tensor", "Pixel 6 Pro")


def test_a_serial_number_that_begins_with_a_space():
    found = parse_devices(sample("devices-rk3288"))
    assert {serial: row["state"] for serial, row in found.items()} == {" GS101200000000": "device", "198.18.3.42:5555": "device"}
    assert found[" GS101200000000"]["usb"] == "17825792X"


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECORDED.glob("*.txt"))])
def test_no_recording_cut_anywhere_is_a_crash(name):
    text = sample(name)
    for end in range(0, len(text), 11):
        for parser in (parse.parse_getprop, parse.parse_df, parse.parse_battery, parse.parse_thermal, parse.parse_screen, parse.parse_clusters, parse_devices, parse_cpuinfo):
            parser(text[:end])


def test_facts_of_a_phone_put_together_from_recordings():
    """A name that the system doesn't give comes from /proc/cpuinfo; temperatures in what Samsung prints."""
    parts = {"props": "[ro.product.cpu.abi]: [arm64-v8a]\n", "cpuinfo": sample("cpuinfo-dimensity-7100"), "battery": sample("battery-oneplus7"), "thermal": sample("thermal-galaxy-a52")}

    class Recorded:
        name = "recorded"

        def shell(self, command, timeout_s=10.0):
            return Result(0, "".join(f"@npas@{key}\n{text}" for key, text in (dict.fromkeys(_QUESTIONS, "") | parts).items()))

    told = facts(Recorded())
    assert told["soc"] == "0x41 0xd05 + 0x41 0xd41" and told["battery"]["level"] == 77 and told["thermal"]["celsius"]["AP"] == 25.6 and not told["emulated"]
