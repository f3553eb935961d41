"""Which kernel runs a Step: the first rule of an ordered list that takes it. A new kernel is one new file in kernels/ and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from stages.compiler.ir import Layout, Step
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.target import Target
from stages.errors import UnsupportedOperator

RULES = ("boundary", "relayout", "planar_conv", "planar_depthwise", "planar_pool", "planar_elementwise", "depthwise", "winograd", "gather", "pool", "layer_norm", "softmax", "elementwise", "copy")  # modules of stages/compiler/kernels, asked in this order


def select(step: Step, layouts: Mapping[str, Layout], target: Target) -> Kernel:
    """The kernel for ``step``. UnsupportedOperator when no rule takes it."""
    none = Layout((0, 0, 0, 0), 0)  # the caller's memory has no Layout of ours
    placed = Placed(step, tuple(layouts.get(name, none) for name in step.inputs), layouts.get(step.output, none))
    for rule in RULES:
        kernel = _module(rule).build(placed, step.scheme, target)
        if kernel is not None:
            return kernel
    raise UnsupportedOperator(
        f"No kernel runs the operation '{step.op}' of layer '{step.name}'.", "Add a rule to stages/compiler/kernels/ and name it in stages/compiler/select.py."
    )


def emit(kernel: Kernel, name: str, target: Target) -> Any:
    """The kernel's code as a TIR PrimFunc called ``name``."""
    return _module(kernel.rule).emit(kernel.spec, name, target)


def _module(rule: str) -> Any:
    return importlib.import_module(f"stages.compiler.kernels.{rule}")
