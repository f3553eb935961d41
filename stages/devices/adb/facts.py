"""What a phone is and how it feels: asked in one command, so that a slow link costs one round trip. Imports this folder, and probe for /proc/cpuinfo."""

from __future__ import annotations

import hashlib
from typing import Any

from stages.devices.adb.connection import Connection
from stages.devices.adb.parse import parse_battery, parse_clusters, parse_df, parse_getprop, parse_screen, parse_thermal
from stages.devices.probe import fingerprint, parse_cpuinfo
from stages.errors import DeviceNotFound

FOLDER = "/data/local/tmp"  # the one place where adb's shell may write and execute; /sdcard is mounted noexec
_MARK = "@npas@"
_QUESTIONS = {
    "props": "getprop",
    "cpuinfo": "cat /proc/cpuinfo",
    "clusters": "cd /sys/devices/system/cpu && for c in cpu[0-9]*; do echo $c $(cat $c/cpufreq/cpuinfo_max_freq 2>/dev/null); done",
    "governors": "cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "kernel": "uname -r",
    "df": f"df -k {FOLDER}",
    "battery": "dumpsys battery",
    "thermal": "dumpsys thermalservice",
    "power": "dumpsys power",
}
_STEADY = ("model", "soc", "abi", "cores", "clusters", "isa", "os_build", "emulated")  # what an identity is made of


def ask(connection: Connection, *questions: str) -> dict[str, str]:
    """The output of each of ``questions`` (keys of _QUESTIONS); "" for a command that the phone lacks or doesn't allow."""
    script = "; ".join(f"echo '{_MARK}{name}'; ( {_QUESTIONS[name]} ) 2>/dev/null" for name in questions)
    sections = connection.shell(script, timeout_s=30).text.split(_MARK)[1:]
    return {name: text for name, _, text in (section.partition("\n") for section in sections)}


def facts(connection: Connection) -> dict[str, Any]:
    """model, soc, abi, abis, sdk, os_build, kernel, cores, clusters, isa, governors, serial (hashed), emulated: what it is.

    battery, thermal, screen_on, free_bytes: how it feels now, see ``condition``. What a phone doesn't tell is None (or empty).
    """
    said = ask(connection, "props", "cpuinfo", "clusters", "governors", "kernel")
    props, clusters = parse_getprop(said["props"]), parse_clusters(said["clusters"])
    arm = "\n".join(line for line in said["cpuinfo"].splitlines() if not line.startswith("flags"))  # the lab's kernel is that of an x86 machine
    cpu = parse_cpuinfo(arm)
    if "ro.product.cpu.abi" not in props:
        raise DeviceNotFound(f"{connection.name} is not an Android phone: it has no ro.product.cpu.abi.", "npas devices lists what is there.")
    return {
        "model": _joined(props, "ro.product.manufacturer", "ro.product.model") or "phone",
        "soc": _joined(props, "ro.soc.manufacturer", "ro.soc.model") or props.get("ro.board.platform") or props.get("ro.hardware") or cpu["soc"],  # ro.soc: Android 12
        "abi": props["ro.product.cpu.abi"],
        "abis": props.get("ro.product.cpu.abilist", props["ro.product.cpu.abi"]).split(","),
        "sdk": int(props["ro.build.version.sdk"]) if props.get("ro.build.version.sdk", "").isdigit() else None,
        "os_build": props.get("ro.build.fingerprint") or props.get("ro.build.display.id") or "unknown",
        "kernel": said["kernel"].strip() or None,
        "cores": sum(len(cluster["cores"]) for cluster in clusters) or 1,
        "clusters": clusters,
        "isa": cpu["isa"],
        "governors": sorted(set(said["governors"].split())),
        "serial": _hashed(props.get("ro.serialno") or props.get("ro.boot.serialno") or ""),
        "emulated": props.get("ro.hardware") in ("qemu", "goldfish", "ranchu", "cutf_cvm") or "1" in (props.get("ro.kernel.qemu"), props.get("ro.boot.qemu")),
        **condition(connection),
    }


def condition(connection: Connection) -> dict[str, Any]:
    """battery (parse_battery), thermal (parse_thermal), screen_on, free_bytes of /data/local/tmp, as they are now; None where the phone doesn't tell."""
    said = ask(connection, "df", "battery", "thermal", "power")
    return {"battery": parse_battery(said["battery"]), "thermal": parse_thermal(said["thermal"]), "screen_on": parse_screen(said["power"]), "free_bytes": parse_df(said["df"])}


def identity(connection: Connection) -> dict[str, Any]:
    """Who the phone is, like probe.host_identity: the same every time, over USB and over the network, with ``fingerprint``."""
    told = facts(connection)
    who = {"kind": "phone", "transport": "adb", "serial": told["serial"]} | {key: told[key] for key in _STEADY} | {"virtual": False}
    return who | {"fingerprint": fingerprint(who)}


def _joined(props: dict[str, str], *names: str) -> str:
    return " ".join(props[name] for name in names if props.get(name))


def _hashed(serial: str) -> str:
    """16 hexadecimal digits for a serial: artifacts are shared, a phone's serial is its owner's business."""
    return hashlib.sha256(serial.encode()).hexdigest()[:16] if serial else ""
