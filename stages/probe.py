"""npas probe: who is the device whose latency counts. Reads the probe section; writes probe/device.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.artifacts import plain, write_json
from stages.config import Config
from stages.progress import Progress


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Write the device's identity, which is the same every time, so that stages that depend on it run again only on another device. Returns it."""
    from stages.devices import open_device

    identity = open_device(config.probe.device, progress, config.probe.hosts).probe() | {"config": plain(config.probe)} | ({"overrides": plain(overrides)} if overrides else {})
    write_json("probe/device.json", identity)
    progress.say(f"{config.probe.device}: {identity['soc']}, {identity['cores']} cores, {identity['abi']}")
    return identity
