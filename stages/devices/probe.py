"""Who a device is, deterministically: what of it decides a latency, and nothing that changes from minute to minute (no temperature, no frequency)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

ISA_FEATURES = (  # those that the choice of kernels, or their speed, depends on
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
SYS = Path("/sys/devices/system/cpu")


def read_text(path: Path | str) -> str | None:
    """The stripped text of a system file, or None where it doesn't exist or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """/proc/cpuinfo (x86 or ARM) as ``{"soc", "isa", "virtual"}``; on ARM the name is the part numbers where the kernel gives no other."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), []).append(value.strip())
    flags = set(" ".join(fields.get("flags", []) + fields.get("Features", [])).split())
    parts = " + ".join(dict.fromkeys(f"{i} {p}" for i, p in zip(fields.get("CPU implementer", []), fields.get("CPU part", []), strict=False)))
    name = next((fields[key][0] for key in ("model name", "Hardware") if fields.get(key)), parts or "unknown")
    model = ", ".join(f"{label} {fields[key][0]}" for label, key in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping")) if fields.get(key))
    return {"soc": f"{name} ({model})" if model else name, "isa": [f for f in ISA_FEATURES if f in flags], "virtual": "hypervisor" in flags}


def clusters() -> list[dict[str, Any]]:
    """Cores grouped by their highest frequency, fastest first: ``{"cores": [0, 1], "max_khz": 3400000}``; max_khz is None where it can't be read."""
    found: dict[str | None, list[int]] = {}
    for cpu in range(os.cpu_count() or 1):
        found.setdefault(read_text(SYS / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"), []).append(cpu)
    return [{"cores": cores, "max_khz": int(khz) if khz else None} for khz, cores in sorted(found.items(), key=lambda kv: -int(kv[0] or 0))]


def fingerprint(identity: dict[str, Any]) -> str:
    """SHA-256 over the identity; a stage that depends on the device runs again when it changes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def host_identity() -> dict[str, Any]:
    """This machine: kind, transport, serial (empty: equal machines are interchangeable), model, soc, abi, cores, clusters, isa, os_build, virtual, emulated, fingerprint."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo") or "")
    product = [read_text(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    identity = {
        "kind": "host", "transport": "local", "serial": "", "model": read_text("/proc/device-tree/model") or " ".join(p for p in product if p) or "computer",
        "soc": cpu["soc"], "abi": platform.machine(), "cores": os.cpu_count() or 1, "clusters": clusters(), "isa": cpu["isa"],
        "os_build": f"{_distribution()}, {platform.system()} {platform.release()}", "virtual": cpu["virtual"], "emulated": False,
    }  # fmt: skip
    return identity | {"fingerprint": fingerprint(identity)}


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def governor(cpu: int) -> str | None:
    """The frequency governor of a core, None where the system doesn't tell. Not part of the identity: it may change at any time."""
    return read_text(SYS / f"cpu{cpu}/cpufreq/scaling_governor")
