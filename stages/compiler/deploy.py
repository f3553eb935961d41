"""Networks as the files that a device takes: libraries for this machine, one executable that holds them all for another. Imports cross and devices' models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stages.compiler import toolchain
from stages.compiler.cross import CrossModel, write_runner
from stages.compiler.model import CompiledModel
from stages.devices.models import Linked, Model
from stages.errors import UsageError


def save_together(networks: Mapping[str, CompiledModel], folder: Path, say: Callable[[str], None] = lambda line: None) -> list[Model]:
    """Save ``networks`` into ``folder`` so that a device can time them in turns, and return them in their order. All must be for one target; names are C identifiers. ``say`` hears why the first executable takes minutes."""
    cross = {name: network for name, network in networks.items() if isinstance(network, CrossModel)}
    if not cross:
        return [network.save(folder / f"{name}.so") for name, network in networks.items()]
    if len(cross) < len(networks):
        raise UsageError("Networks for different machines can't be timed together.", "Compile all of them for the same target.")
    toolchain.prepare(toolchain.STATIC, say)
    program = write_runner(cross, folder / "runner")
    return [Linked(program, name) for name in networks]
