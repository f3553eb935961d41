"""What Android's commands print, as values; whatever a phone leaves out is None. Pure functions; imports nothing of npas.

Formats: frameworks/base BatteryService.dump and ThermalManagerService.dump, PowerManagerService.dump (AOSP), toybox df, getprop.
"""

from __future__ import annotations

import re
from typing import Any

BATTERY_STATUS = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}  # android.os.BatteryManager
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # android.os.PowerManager
_PROPERTY = re.compile(r"^\[([^\]]+)\]: \[(.*?)\]$", re.MULTILINE | re.DOTALL)  # a value may hold line ends
_TEMPERATURE = re.compile(r"Temperature\{mValue=([-\d.NaE]+), mType=(-?\d+), mName=([^,]*), mStatus=(\d+)\}")


def parse_getprop(text: str) -> dict[str, str]:
    """``[ro.product.model]: [Pixel 6]`` lines."""
    return {name: value for name, value in _PROPERTY.findall(text) if value}


def parse_df(text: str) -> int | None:
    """Free bytes of the one file system in what ``df -k FOLDER`` prints: the column "Available" ("Avail"), in KiB. A long device name puts its figures on a line of their own."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return None
    column = next((i for i, word in enumerate(lines[0]) if word.lower().startswith("avail")), None)
    if column is None:
        return None
    words = [word for line in lines[1:] for word in line]
    return int(words[column]) * 1024 if column < len(words) and words[column].isdigit() else None


def parse_battery(text: str) -> dict[str, Any] | None:
    """``dumpsys battery``: level in percent, temperature in degrees Celsius (printed in tenths), whether it is plugged in, status. None when there is no such service."""
    found = dict(reversed(re.findall(r"^\s*([\w ]+): (\S+)\s*$", text, re.MULTILINE)))  # the first of a name: makers add theirs below
    if "level" not in found:
        return None
    scale, status, tenths = int(found.get("scale", 100)), _integer(found.get("status")), _integer(found.get("temperature"))
    return {
        "level": round(100 * int(found["level"]) / scale),
        "celsius": None if tenths is None else tenths / 10,
        "plugged": any(value == "true" for name, value in found.items() if name.endswith("powered")),
        "status": BATTERY_STATUS.get(status, "unknown") if status is not None else "unknown",
    }


def parse_thermal(text: str) -> dict[str, Any] | None:
    """``dumpsys thermalservice`` (Android 10 and later): the status 0 to 6 (THERMAL_STATUS), and sensor name -> degrees Celsius.

    Of its two lists of temperatures the "Current temperatures from HAL" is the one that is asked anew; the cached one holds what was last announced. None when there is no such service.
    """
    status = re.search(r"Thermal Status: (\d+)", text)
    if status is None:
        return None
    _, _, current = text.partition("Current temperatures from HAL:")
    block = re.split(r"\n\S", current, maxsplit=1)[0]  # the block is indented
    celsius = {name: float(value) for value, _, name, _ in _TEMPERATURE.findall(block) if value not in ("NaN", "-NaN")}
    return {"status": int(status[1]), "celsius": celsius}


def parse_screen(text: str) -> bool | None:
    """``dumpsys power``: whether the screen is on. A dark one makes Android move threads to slow cores."""
    found = re.search(r"^\s*mWakefulness=(\w+)", text, re.MULTILINE) or re.search(r"Display Power: state=(\w+)", text)
    return found[1] in ("Awake", "ON") if found else None


def parse_clusters(text: str) -> list[dict[str, Any]]:
    """Lines "cpu4 2400000" (no figure where cpufreq may not be read) as cores grouped by highest frequency in kHz, fastest first, like probe.clusters."""
    found: dict[int | None, list[int]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"cpu(\d+)(?: (\d+))?", line.strip()):
            found.setdefault(_integer(match[2]), []).append(int(match[1]))
    return [{"cores": sorted(cores), "max_khz": khz} for khz, cores in sorted(found.items(), key=lambda kv: -(kv[0] or 0))]


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None
