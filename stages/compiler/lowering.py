"""What the lowering rules share: the steps so far, and what each layer's name stands for by now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from stages.compiler.ir import Program, Step, Value
from stages.errors import UnsupportedOperator
from stages.graph.layer import Graph, Layer
from stages.schemes.scheme import Scheme


@dataclass(frozen=True)
class Ref:
    """What a layer's name stands for: a Value, and how the network sees it: "plain", "flat" (n, c * h * w), "grouped" (n, g, c / g, h, w) or "shuffled" (n, c / g, g, h, w)."""

    value: str
    form: str = "plain"
    groups: int = 0


class Lowering:
    """A Program in the making; the rules of lower*.py add to it, layer by layer."""

    def __init__(self, graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme):
        self.graph, self.tensors, self.scheme = graph, tensors, scheme
        self.steps: list[Step] = []
        self.values: dict[str, Value] = {}
        self.refs: dict[str, Ref] = {}
        self.inputs: list[tuple[str, tuple[int, ...]]] = []

    def refuse(self, layer: Layer, operator: str) -> NoReturn:
        """UnsupportedOperator for ``layer``."""
        raise UnsupportedOperator(
            f"npas can't compile the operator '{operator}' of layer '{layer.name}'.",
            "Add a rule to the table in stages/compiler/lower.py, and a kernel to stages/compiler/kernels/ if none fits.",
        )

    def value(self, name: str, shape: tuple[int, ...], layer: Layer) -> str:
        """A new Value for ``shape`` (n, c, h, w) or (n, c)."""
        if len(shape) not in (2, 4):
            self.refuse(layer, f"{layer.op} with a result of {len(shape)} dimensions")
        self.values[name] = Value(name, (*shape, *(1,) * (4 - len(shape))))  # type: ignore[arg-type]
        return name

    def plain(self, layer: Layer, index: int = 0) -> Value:
        """The Value of an operand that must be seen as it lies."""
        ref = self.refs[layer.inputs[index]]
        if ref.form != "plain":
            self.refuse(layer, f"{layer.op} of a reshaped tensor")
        return self.values[ref.value]

    def tensor(self, layer: Layer, role: str) -> np.ndarray | None:
        """A layer's parameter, None where it has none of that role."""
        name = layer.params.get(role)
        return None if name is None else np.asarray(self.tensors[name])

    def add(self, layer: Layer, step: Step, form: str = "plain") -> None:
        """Append ``step``; the layer's name stands for its output from now on."""
        self.steps.append(step)
        self.refs[layer.name] = Ref(step.output, form)

    def finish(self) -> Program:
        """The Program, with a step for each output and without steps that nobody reads."""
        outputs = []
        for index, name in enumerate(self.graph.outputs):
            ref = self.refs[name]
            if ref.form not in ("plain", "flat"):
                self.refuse(self.graph[name], "reshape at the network's output")
            outputs.append((ref.value, self.graph[name].shape))
            self.steps.append(Step(f"output{index}", "output", (ref.value,), f"output:{index}", {"index": index}))
        return drop_unread(Program(tuple(self.steps), self.values, tuple(self.inputs), tuple(outputs)))


def drop_unread(program: Program) -> Program:
    """The Program without steps whose results nobody reads."""
    needed: set[str] = set()
    kept = []
    for step in reversed(program.steps):
        if step.op in ("input", "output") or step.output in needed:
            kept.append(step)
            needed.update(step.inputs)
    written = {name for step in kept for name in (*step.inputs, step.output)}
    return Program(tuple(reversed(kept)), {k: v for k, v in program.values.items() if k in written}, program.inputs, program.outputs)
