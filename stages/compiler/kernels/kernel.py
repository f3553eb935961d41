"""Kernel: one compiled step before compilation: which code (a rule and its spec) and which data. Imports numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.compiler.ir import Layout, Step, View


@dataclass(frozen=True)
class Placed:
    """A Step with the Layouts of its operands, in the order of ``step.inputs``, and of its result."""

    step: Step
    inputs: tuple[Layout, ...]
    output: Layout

    @property
    def modes(self) -> tuple[str, ...]:
        """How each further operand is read: "full" (pixel by pixel) or "channel" (one number a channel)."""
        return tuple("full" if x.shape == self.output.shape else "channel" for x in self.inputs[1:])

    @property
    def extras(self) -> tuple[View, ...]:
        """The walks over the further operands that go with a walk over the result's pixels, pixel-major; one number a channel stays where it is."""
        return tuple(x.view if mode == "full" else (0, x.image, 0, 0) for x, mode in zip(self.inputs[1:], self.modes, strict=True))


@dataclass(frozen=True)
class Kernel:
    """What a rule makes of a Step.

    ``rule`` is the module in kernels/ whose ``emit(spec, name, target)`` writes the code; ``spec``, a frozen dataclass of plain values, is all that the code depends on, so kernels with equal
    specs share one object file. ``data`` holds the packed arrays by operand name (w, b, ptr, idx). ``x`` and the further operands are ``step.inputs``, ``y`` is ``step.output``.
    The work is divided into ``units`` that may run at the same time in any split (units.py); ``scratch`` is how many bytes of memory of its own each thread needs.
    ``choice`` is what a rule that can be tuned has chosen (its frozen dataclass Choice), and ``tuned`` where that comes from: "measured here", "shipped" or "model".
    """

    rule: str
    spec: Any
    step: Step
    data: Mapping[str, np.ndarray] = field(default_factory=dict)
    tile: str = ""
    macs: int = 0
    reason: str = ""
    units: int = 1
    scratch: int = 0
    choice: Any = None
    tuned: str = ""
