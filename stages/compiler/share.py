"""Concatenations and channel slices without copies: Values that are parts of one another share one buffer, so that producers write straight into their place.

A copy step that moves whole pixels' channels to another place along the channel axis is a *window*: a part of a concatenation, or a slice. Where both sides of a window can lie in one buffer
at the right distance, nothing needs to be copied. Each channel of a buffer has one writer. What can't be is copied as before: a part that doesn't begin at a whole vector (its writer would
spoil its neighbour), one that would have to be at two places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.compiler.ir import Program, Step, Value, round_up
from stages.compiler.lowering import drop_unread
from stages.compiler.target import Target


def share(program: Program, target: Target) -> Program:
    """The Program with ``views`` and ``buffers``, without the copies that they make unnecessary."""
    program = _forward(program)
    buffers = _Buffers(program, target.narrow[-1])
    gone: set[int] = set()
    for steps in buffers.concats.values():
        gone.update(buffers.join_parts(steps))
    for step in program.steps:
        window = _window(step, program)
        if window is not None and not window.is_part and buffers.join([_Join(step.output, step.inputs[0], window.offset, (step.output,))]):
            gone.add(id(step))
    return buffers.result(tuple(step for step in program.steps if id(step) not in gone))


@dataclass(frozen=True)
class _Window:
    """``is_part``: the whole source becomes the target's channels from ``offset`` on; else the source's channels from ``offset`` on become the whole target."""

    is_part: bool
    offset: int


def _window(step: Step, program: Program) -> _Window | None:
    """What a copy step is, None where it isn't a window."""
    if step.op != "copy" or step.attrs["fill"] is not None:
        return None
    counts = [1, 1, 1, 1]
    for count, read, write in step.attrs["loops"]:
        if read != write or sorted(read) != [0, 0, 0, 1] or counts[read.index(1)] != 1:
            return None
        counts[read.index(1)] = count
    read, write = step.attrs["read"], step.attrs["write"]
    if any(read[k] or write[k] for k in (0, 2, 3)):
        return None
    if tuple(counts) == program.values[step.inputs[0]].shape and read[1] == 0:
        other = program.values[step.output].shape
        return _Window(True, write[1]) if (counts[0], *counts[2:]) == (other[0], *other[2:]) else None
    if tuple(counts) == program.values[step.output].shape and write[1] == 0:
        other = program.values[step.inputs[0]].shape
        return _Window(False, read[1]) if (counts[0], *counts[2:]) == (other[0], *other[2:]) else None
    return None


def _forward(program: Program) -> Program:
    """Copies of what windows made read from where it came: a channel shuffle of a concatenation reads the parts."""
    makers: dict[str, list[tuple[Step, _Window]]] = {}
    steps = []
    for step in program.steps:
        if step.op == "copy":
            window = _window(step, program)
            if window is None or not window.is_part:  # parts of concatenations stay such: they needn't be copied at all
                step = _forwarded(step, program, makers)
                window = _window(step, program)
            if window is not None:
                makers.setdefault(step.output, []).append((step, window))
        steps.append(step)
    return drop_unread(replace(program, steps=tuple(steps)))


def _forwarded(step: Step, program: Program, makers: dict[str, list[tuple[Step, _Window]]]) -> Step:
    n, first, h, w = step.attrs["read"]
    last = first + sum((count - 1) * read[1] for count, read, _ in step.attrs["loops"])
    for maker, window in makers.get(step.inputs[0], ()):
        channels = program.values[maker.inputs[0]].shape[1]
        if not window.is_part or (window.offset <= first and last < window.offset + channels):
            moved = first - window.offset if window.is_part else first + window.offset
            return _forwarded(replace(step, inputs=maker.inputs, attrs={**step.attrs, "read": (n, moved, h, w)}), program, makers)
    return step


_Writer = tuple[object, ...]  # who writes some channels: (Value,), or (Value, number of the copy) for a concatenation


@dataclass
class _Buffer:
    """Values and writers with the channel at which each begins, relative to one another."""

    members: dict[str, int]
    writers: dict[_Writer, tuple[int, int]]  # (first channel, channels rounded up to a vector)

    def disjoint(self, quantum: int) -> bool:
        """Whether no two writers meet, and all begin at whole vectors."""
        spans = sorted(self.writers.values())
        apart = all(a + size <= b for (a, size), (b, _) in zip(spans, spans[1:], strict=False))
        return apart and len({start % quantum for start, _ in spans}) == 1


@dataclass(frozen=True)
class _Join:
    """``inner`` shall begin ``offset`` channels into ``outer``; then nobody need write as ``writer``."""

    inner: str
    outer: str
    offset: int
    writer: _Writer


class _Buffers:
    """Which Values share a buffer so far."""

    def __init__(self, program: Program, quantum: int):
        self.program, self.quantum = program, quantum
        self.concats = _concats(program, quantum)
        self.of = {name: _Buffer({name: 0}, self._writers(value)) for name, value in program.values.items()}

    def _writers(self, value: Value) -> dict[_Writer, tuple[int, int]]:
        parts = self.concats.get(value.name)
        if parts is None:
            return {(value.name,): (0, round_up(value.shape[1], self.quantum))}
        sizes = [round_up(self.program.values[step.inputs[0]].shape[1], self.quantum) for step in parts]
        return {(value.name, k): (step.attrs["write"][1], size) for k, (step, size) in enumerate(zip(parts, sizes, strict=True))}

    def join_parts(self, steps: Sequence[Step]) -> set[int]:
        """Join the parts of one concatenation, all of them or, the largest first, those that can be; the ids of the copies that are no more needed."""
        joins = [_Join(step.inputs[0], step.output, step.attrs["write"][1], (step.output, k)) for k, step in enumerate(steps)]
        if self.join(joins):
            return {id(step) for step in steps}
        order = sorted(range(len(steps)), key=lambda k: -self.program.values[steps[k].inputs[0]].shape[1])
        return {id(steps[k]) for k in order if self.join([joins[k]])}

    def join(self, joins: Sequence[_Join]) -> bool:
        """Make all ``joins`` or, where they contradict what is or one another, none."""
        touched = {id(b): b for join in joins for b in (self.of[join.inner], self.of[join.outer])}
        made = {name: _Buffer(dict(b.members), dict(b.writers)) for b in touched.values() for name in b.members}
        made = {name: made[next(iter(self.of[name].members))] for name in made}  # one copy a buffer
        for join in joins:
            inner, outer = made[join.inner], made[join.outer]
            shift = outer.members[join.outer] + join.offset - inner.members[join.inner]
            if inner is outer and shift:
                return False
            outer.writers.pop(join.writer, None)
            inner.writers.pop(join.writer, None)
            if inner is not outer:
                outer.members.update({name: start + shift for name, start in inner.members.items()})
                outer.writers.update({writer: (start + shift, size) for writer, (start, size) in inner.writers.items()})
                made.update(dict.fromkeys(inner.members, outer))
        if not all(buffer.disjoint(self.quantum) for buffer in made.values()):
            return False
        self.of.update(made)
        return True

    def result(self, steps: tuple[Step, ...]) -> Program:
        """The Program with what was found; copies that remain beside joined parts write into Values of their own, so that each writer knows its share of the frame."""
        program, values = self.program, dict(self.program.values)
        views: dict[str, tuple[str, int]] = {}
        buffers: dict[str, Value] = {}
        for buffer in {id(b): b for b in self.of.values()}.values():
            if len(buffer.members) > 1:
                self._place(buffer, values, views, buffers)
        steps = tuple(self._own_share(step, values, views) for step in steps)
        return replace(program, steps=steps, values=values, views=views, buffers=buffers)

    def _place(self, buffer: _Buffer, values: dict[str, Value], views: dict[str, tuple[str, int]], buffers: dict[str, Value]) -> None:
        starts = [start for start, _ in buffer.writers.values()]
        first = min(*starts, *buffer.members.values())
        first -= (first - starts[0]) % self.quantum
        ends = [start + round_up(values[name].shape[1], self.quantum) for name, start in buffer.members.items()]
        name = f"buffer of {next(iter(buffer.members))}"
        n, _, h, w = values[next(iter(buffer.members))].shape
        buffers[name] = Value(name, (n, round_up(max(ends) - first, self.quantum), h, w))
        views.update({member: (name, start - first) for member, start in buffer.members.items()})

    def _own_share(self, step: Step, values: dict[str, Value], views: dict[str, tuple[str, int]]) -> Step:
        if step.output not in views or step.output not in self.concats:
            return step
        place, (n, c, h, w) = step.attrs["write"][1], values[step.inputs[0]].shape
        name = f"{step.output}@{place}"
        values[name] = Value(name, (n, c, h, w))
        views[name] = (views[step.output][0], views[step.output][1] + place)
        return replace(step, output=name, attrs={**step.attrs, "write": (0, 0, 0, 0), "first": True})


def _concats(program: Program, quantum: int) -> dict[str, tuple[Step, ...]]:
    """For each concatenation along channels whose parts all begin at whole vectors, its copies."""
    copies: dict[str, list[Step]] = {}
    for step in program.steps:
        if step.op == "copy":
            copies.setdefault(step.output, []).append(step)
    found = {}
    for name, steps in copies.items():
        windows = [_window(step, program) for step in steps]
        whole = sum(program.values[step.inputs[0]].shape[1] for step in steps) == program.values[name].shape[1]
        if whole and all(w is not None and w.is_part and w.offset % quantum == 0 for w in windows):
            found[name] = tuple(steps)
    return found
