"""What a phone must be before it is measured, and what surrounds the measurement. Imports errors, timing, adb/ and the held connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stages.devices.adb.facts import facts
from stages.devices.adb.parse import parse_thermal
from stages.devices.job import Held
from stages.devices.timing import Conditions
from stages.errors import DeviceHot, UsageError

ABI = "arm64-v8a"
COOL = 0  # thermal status "none"
LOW_BATTERY = 15  # percent; below, phones save power
LOOK_SECONDS = 10.0  # between two looks at the temperature: asking costs the phone some work


@dataclass(frozen=True)
class Ready:
    """A phone that may be measured: its facts (adb/facts.py), the cores that its shell may use, and what speaks against trusting it."""

    facts: dict[str, Any]
    allowed: frozenset[int]
    warnings: tuple[str, ...]


def inspect(held: Held) -> Ready:
    """Look at everything once. UsageError for a phone that isn't 64-bit ARM."""
    told = held.bridged(lambda: facts(held.connection))
    if ABI not in told["abis"]:
        raise UsageError(f"{held.connection.name} runs {told['abi']} programs; npas compiles for {ABI}.", "Take a phone with a 64-bit ARM system.")
    allowed = _ranges((held.line("grep Cpus_allowed_list /proc/self/status") or "").split(":")[-1])
    battery, warnings = told["battery"], []
    if battery and battery["level"] < LOW_BATTERY and not battery["plugged"]:
        warnings.append(f"warning: the battery is at {battery['level']} %, where phones save power")
    if told["screen_on"] is False:
        warnings.append("warning: the screen is dark, which makes some phones move programs to slow cores")
    return Ready(told, frozenset(allowed or (core for cluster in told["clusters"] for core in cluster["cores"])), tuple(warnings))


@dataclass
class Thermal:
    """The phone's temperature over a measurement: status before, after and highest, and ``[seconds, status, degrees]`` rows."""

    held: Held
    began: float = field(default_factory=time.monotonic)
    looked: float = float("-inf")
    trace: list[list[float | None]] = field(default_factory=list)

    def look(self, at_once: bool = False) -> int | None:
        """The status now, looked at only every LOOK_SECONDS; None where Android doesn't tell (before version 10)."""
        if not at_once and time.monotonic() - self.looked < LOOK_SECONDS:
            return None
        self.looked = time.monotonic()
        found = parse_thermal(self.held.shell("dumpsys thermalservice")[1])
        if found is None:
            return None
        self.trace.append([round(self.looked - self.began, 1), found["status"], max(found["celsius"].values(), default=None)])
        return int(found["status"])

    def cool(self, seconds: float, say: Callable[[str], None]) -> None:
        """Wait until the phone isn't hot. DeviceHot (exit 9) when it still is after ``seconds``."""
        end = time.monotonic() + seconds
        said = False
        while (status := self.look(at_once=True)) is not None and status > COOL:
            if time.monotonic() >= end:
                hot = f"still hot (thermal status {status}) after {seconds / 60:g} minutes" if seconds else f"hot (thermal status {status})"
                raise DeviceHot(f"{self.held.connection.name} is {hot}.", "Let it cool, out of its case and off the charger; or wait longer with bench.cool_minutes.")
            if not said:
                say(f"{self.held.connection.name} is hot (thermal status {status}): waiting up to {seconds / 60:g} minutes")
                said = True
            time.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
        self.trace = self.trace[-1:]  # of the waiting only its end

    def record(self) -> dict[str, Any]:
        """As in the record of a bench."""
        status = [int(row[1]) for row in self.trace if row[1] is not None]
        return {"before": status[0] if status else None, "after": status[-1] if status else None, "max_status": max(status, default=None), "trace": self.trace}


def conditions(ready: Ready, held: Held, thermal: Thermal, core: int) -> Conditions:
    """All of it, for the record; the governor is that of ``core``."""
    link = {"losses": held.connection.losses, "reconnects": held.connection.reconnects}
    governor = held.line(f"cat /sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor")
    return Conditions(ready.facts["kernel"], ready.facts["sdk"], governor, ready.facts["battery"], thermal.record(), link)


def _ranges(text: str) -> list[int]:
    """ "0-3,7" as cores."""
    found: list[int] = []
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low.strip().isdigit():
            found += range(int(low), int(high or low) + 1)
    return found
