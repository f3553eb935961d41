"""What the lowering rules share: the steps so far, and what each layer's name stands for by now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NoReturn

import numpy as np

from stages.compiler.ir import Program, Step, Value
from stages.compiler.refs import AXES, CHANNELS_LAST, C, Digit, Ref, whole
from stages.errors import UnsupportedOperator
from stages.graph.layer import Graph, Layer
from stages.schemes.scheme import Scheme

Loop = tuple[int, tuple[int, int, int, int], tuple[int, int, int, int]]
"""A loop of a copy step: how often, and how far one round moves along (n, c, h, w) of the source and of the target."""

_APART = 8  # groups of a channel shuffle up to this many are copied one by one


class Lowering:
    """A Program in the making; the rules of lower*.py add to it, layer by layer."""

    def __init__(self, graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme):
        self.graph, self.tensors, self.scheme = graph, tensors, scheme
        self.steps: list[Step] = []
        self.values: dict[str, Value] = {}
        self.refs: dict[str, Ref] = {}
        self.copies: dict[tuple[Ref, tuple[int, ...] | None], Ref] = {}  # what was copied once needn't be copied again
        self.inputs: list[tuple[str, tuple[int, ...]]] = []

    def refuse(self, layer: Layer, operator: str) -> NoReturn:
        """UnsupportedOperator for ``layer``."""
        raise UnsupportedOperator(
            f"npas can't compile the operator '{operator}' of layer '{layer.name}'.",
            "Add a rule to the table in stages/compiler/lower.py, and a kernel to stages/compiler/kernels/ if none fits.",
        )

    def new(self, layer: Layer, shape: Sequence[int], axes: Sequence[int] | None = None) -> Ref:
        """A new Value for a tensor of ``shape``, seen whole; dimension k is axis ``axes[k]`` (by default as in refs.AXES)."""
        order = AXES.get(len(shape)) if axes is None else axes
        if order is None:
            self.refuse(layer, f"{layer.op} with a result of {len(shape)} dimensions")
        sizes = [1, 1, 1, 1]
        for axis, count in zip(order, shape, strict=True):
            sizes[axis] = count
        name = self._free(layer.name)
        self.values[name] = Value(name, (sizes[0], sizes[1], sizes[2], sizes[3]))
        return whole(name, self.values[name].shape, order)

    def _free(self, name: str) -> str:
        """``name``, or the next that no Value has: one layer may need several."""
        number, wanted = 2, name
        while wanted in self.values:
            wanted, number = f"{name}#{number}", number + 1
        return wanted

    def ref(self, layer: Layer, index: int = 0) -> Ref:
        """What an operand stands for."""
        name = layer.inputs[index]
        return self.refs[name] if name in self.refs else self.refuse(layer, f"{layer.op} with the constant '{name}' as operand")

    def in_order(self, layer: Layer, index: int = 0) -> Ref:
        """An operand whose dimensions are the axes of its Value in the usual order (refs.AXES): as it lies where that is so, else a copy."""
        ref = self.ref(layer, index)
        return ref if ref.axes() == AXES.get(len(ref.dims)) else self.copy(layer, ref)

    def plain(self, layer: Layer, index: int = 0) -> Value:
        """The Value of an operand whose dimensions are its axes in the usual order."""
        return self.values[self.in_order(layer, index).value]

    def channels_last(self, layer: Layer, index: int = 0) -> Ref:
        """An operand whose last dimension is all the channels of its Value, the others parts of the other axes: as it lies where that is so, else a copy."""
        return self.channels_last_of(layer, self.ref(layer, index))

    def channels_last_of(self, layer: Layer, ref: Ref) -> Ref:
        """``ref``, or a copy, so that its last dimension is all the channels of its Value."""
        own = (Digit(C, 1, ref.shape[-1]),) if ref.shape[-1] > 1 else ()
        if ref.dims[-1] == own and self.values[ref.value].shape[C] == ref.shape[-1]:
            return ref
        return self.copy(layer, ref, CHANNELS_LAST if len(ref.dims) == 4 else AXES.get(len(ref.dims)))

    def like(self, layer: Layer, ref: Ref) -> Ref:
        """A new Value of the same shape as ``ref``'s, seen in the same way."""
        made = self.new(layer, self.values[ref.value].shape)
        return replace(ref, value=made.value)

    def copy(self, layer: Layer, ref: Ref, axes: Sequence[int] | None = None) -> Ref:
        """The same tensor in a Value of its own, so that dimension k is axis ``axes[k]``. A tensor of another rank than 1 to 4 becomes a matrix (first dimension, the rest) inside."""
        if len(ref.dims) not in AXES:
            matrix = ref.reshaped((ref.shape[0], prod(ref.shape[1:]))) or self.refuse(layer, f"{layer.op} of a tensor of {len(ref.dims)} dimensions")
            return self.copy(layer, matrix).reshaped(ref.shape) or self.refuse(layer, f"{layer.op} of a tensor of {len(ref.dims)} dimensions")
        key = (ref, None if axes is None else tuple(axes))
        if key not in self.copies:
            self.copies[key] = self.new(layer, ref.shape, axes)
            self.move(layer, ref, self.copies[key])
        return self.copies[key]

    def move(self, layer: Layer, source: Ref, target: Ref, first: bool = True, fill: float | None = None) -> None:
        """A step that copies the elements of ``source`` to those of ``target``, a part of a Value of whole axes. Only the ``first`` of several steps zeroes the target's frame; ``fill`` goes where nothing else does."""
        loops: list[Loop] = []
        for dim, place in zip(source.dims, target.dims, strict=True):
            inner = 1
            for digit in reversed(dim):
                read, write = [0, 0, 0, 0], [0, 0, 0, 0]
                read[digit.axis], write[place[0].axis] = digit.step, place[0].step * inner
                loops.append((digit.size, _four(read), _four(write)))
                inner *= digit.size
        shuffled = [loop for loop in loops if loop[1][C] > 1 and loop[0] <= _APART]
        if not shuffled or fill is not None:
            self.put(layer, source.value, target.value, loops, source.first, target.first, first, fill)
            return
        count, read_step, write_step = groups = max(shuffled, key=lambda loop: loop[1][C])
        rest = [loop for loop in loops if loop is not groups]
        for k in range(count):  # one step a group of channels: share.py can let each read from where the group came
            self.put(layer, source.value, target.value, rest, _along(source.first, read_step, k), _along(target.first, write_step, k), first and k == 0)

    def put(
        self,
        layer: Layer,
        source: str,
        target: str,
        loops: Sequence[Loop],
        read: tuple[int, int, int, int] = (0, 0, 0, 0),
        write: tuple[int, int, int, int] = (0, 0, 0, 0),
        first: bool = True,
        fill: float | None = None,
    ) -> None:
        """A copy step from ``loops`` (see kernels/copy.py), from place ``read`` to place ``write``."""
        attrs: dict[str, Any] = {"loops": tuple(loops), "read": read, "write": write, "first": first, "fill": fill}
        self.steps.append(Step(layer.name, "copy", (source,), target, attrs))

    def tensor(self, layer: Layer, role: str) -> np.ndarray | None:
        """A layer's parameter, None where it has none of that role."""
        name = layer.params.get(role)
        return None if name is None else np.asarray(self.tensors[name])

    def add(self, layer: Layer, step: Step, made: Ref) -> None:
        """Append ``step``; the layer's name stands for ``made`` from now on."""
        self.steps.append(step)
        self.refs[layer.name] = made

    def finish(self) -> Program:
        """The Program, with a step for each output and without steps that nobody reads."""
        outputs = []
        for index, name in enumerate(self.graph.outputs):
            layer = self.graph[name]
            ref = self._as_returned(layer, self.refs[name] if name in self.refs else self.refuse(layer, f"{layer.op} at the network's output"))
            outputs.append((ref.value, layer.shape))
            self.steps.append(Step(f"output{index}", "output", (ref.value,), f"output:{index}", {"index": index}))
        return drop_unread(Program(tuple(self.steps), self.values, tuple(self.inputs), tuple(outputs)))

    def _as_returned(self, layer: Layer, ref: Ref) -> Ref:
        """The caller sees a Value's elements in the order n, c, h, w: any other order takes a copy."""
        n, c, h, w = self.values[ref.value].shape
        usual = whole(ref.value, (n, c, h, w), (0, 1, 2, 3)).reshaped((n * c * h * w,))
        if ref.reshaped((prod(ref.shape),)) == usual:
            return ref
        length = ref.shape[0] if ref.shape else 1
        matrix = ref.reshaped((length, prod(ref.shape[1:]))) or self.refuse(layer, f"{layer.op} at the network's output")
        return self.copy(layer, matrix)


def _along(place: tuple[int, int, int, int], step: tuple[int, int, int, int], count: int) -> tuple[int, int, int, int]:
    return _four([p + count * s for p, s in zip(place, step, strict=True)])


def _four(values: Sequence[int]) -> tuple[int, int, int, int]:
    return (values[0], values[1], values[2], values[3])


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
