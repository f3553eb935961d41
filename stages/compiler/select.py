"""Which kernel runs a Step: what measurements chose, else the first rule of an ordered list that takes it. A new kernel is one new file in kernels/ and one line here."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from stages.compiler.ir import Layout, Step
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.target import Target
from stages.compiler.tuning import database
from stages.compiler.tuning.signature import signature
from stages.errors import UnsupportedOperator

# modules of stages/compiler/kernels, asked in this order
RULES = (
    *("space_to_depth", "boundary", "relayout", "planar_band", "planar_conv", "planar_depthwise", "planar_pool", "planar_elementwise"),
    *("depthwise", "winograd", "matvec", "gather", "pool", "layer_norm", "softmax", "elementwise", "copy"),
)
# those that can be tuned: Choice (a frozen dataclass of what is tuned, with a ``handicap``), choices(placed, target) -> [(estimated cycles, Choice)], chosen(placed, scheme, target, choice) -> Kernel
TUNABLE = ("planar_conv", "winograd", "gather")
FIXED = ("matvec",)  # those that take a step (``takes``) whatever was measured of the rules behind them


def select(step: Step, layouts: Mapping[str, Layout], target: Target) -> Kernel:
    """The kernel for ``step``: the choice of the tuning database where it has one. UnsupportedOperator when no rule takes it."""
    placed = place(step, layouts)
    name = None if any(_module(rule).takes(placed) for rule in FIXED) else signature(placed)
    found = database.find(name, target) if name is not None else None
    choice = decode(found[0]) if found is not None else None
    if found is None or choice is None:
        return untuned(placed, target)
    return dataclasses.replace(chosen(placed, choice, target), tuned=found[1])


def place(step: Step, layouts: Mapping[str, Layout]) -> Placed:
    """``step`` with the Layouts of its operands."""
    none = Layout((0, 0, 0, 0), 0)  # the caller's memory has no Layout of ours
    return Placed(step, tuple(layouts.get(name, none) for name in step.inputs), layouts.get(step.output, none))


def untuned(placed: Placed, target: Target) -> Kernel:
    """The kernel that the rules choose by their models, as if nothing had been measured."""
    for rule in RULES:
        kernel = _module(rule).build(placed, placed.step.scheme, target)
        if kernel is not None:
            return dataclasses.replace(kernel, tuned=database.MODEL) if kernel.choice is not None else kernel
    step = placed.step
    raise UnsupportedOperator(
        f"No kernel runs the operation '{step.op}' of layer '{step.name}'.", "Add a rule to stages/compiler/kernels/ and name it in stages/compiler/select.py."
    )


def choices(placed: Placed, target: Target) -> Iterator[list[tuple[float, Any]]]:
    """For each rule that can be tuned and takes ``placed``: (estimated cycles, its Choice) of all legal choices."""
    for rule in TUNABLE:
        found = _module(rule).choices(placed, target)
        if found:
            yield found


def chosen(placed: Placed, choice: Any, target: Target) -> Kernel:
    """The kernel with one of ``choices``."""
    return _module(rule_of(choice)).chosen(placed, placed.step.scheme, target, choice)  # type: ignore[no-any-return]


def rule_of(choice: Any) -> str:
    """The rule whose Choice ``choice`` is."""
    return str(type(choice).__module__.rpartition(".")[2])


def decode(plain: database.Plain) -> Any | None:
    """The Choice that the database writes as ``plain``, None when this version's rules know no such choice."""
    rule, genes = plain.get("rule"), {name: value for name, value in plain.items() if name != "rule"}
    if rule not in TUNABLE:
        return None
    kind = _module(rule).Choice
    fields = dataclasses.fields(kind)
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}  # what was measured before a field was added had its default
    return kind(**genes) if needed <= set(genes) <= {f.name for f in fields} else None


def emit(kernel: Kernel, name: str, target: Target) -> Any:
    """The kernel's code as a TIR PrimFunc called ``name``."""
    return _module(kernel.rule).emit(kernel.spec, name, target)


def _module(rule: str) -> Any:
    return importlib.import_module(f"stages.compiler.kernels.{rule}")
