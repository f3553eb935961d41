"""Where everything lies: Layouts with the frames that readers need, and one static workspace, first-fit by liveness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stages.compiler.ir import Layout, Program, Step, Value, round_up
from stages.compiler.target import Target

ALIGNMENT = 64
LINE = 64  # bytes of a cache line
SMALL = 512 << 10  # bytes of a Value that is likely to stay in the caches of the cores that use it
FRONT = 1 << 14  # bytes at the beginning that hold no Value: bands (kernels/planar_band.py) read rows before a Value's first, and put zeros in their place
CROWDED = 16  # a pitch of a multiple of so many lines leaves pixels at most 4 of the 64 sets of a first-level cache


def layouts(program: Program, target: Target, planes: Mapping[str, Layout] | None = None) -> dict[str, Layout]:
    """A Layout for each Value and each shared buffer: those of ``planes`` (arrange.py), the others pixel-major, framed as far as convolutions read beyond the image.

    Images that come in and are only convolved stay planar.
    """
    made = {step.output: step for step in program.steps}
    given = planes or {}
    alone = {name: given[name] if name in given else _layout(value, made.get(name), program, target) for name, value in program.values.items()}
    return {**alone, **_shared(program, alone, target)}


def _shared(program: Program, alone: dict[str, Layout], target: Target) -> dict[str, Layout]:
    """The Layouts of shared buffers and of the Values in them: pixel-major, with a frame that is enough for every reader."""
    found = {}
    for buffer, whole in program.buffers.items():
        members = [name for name, (place, _) in program.views.items() if place == buffer]
        border = tuple(max(alone[name].border[side] for name in members) for side in range(4))
        layout = Layout(whole.shape, _pitch(whole, target), (border[0], border[1], border[2], border[3]))
        found[buffer] = layout
        found.update({name: replace(layout, shape=alone[name].shape, part=round_up(alone[name].shape[1], target.narrow[-1])) for name in members})
    return found


def _layout(value: Value, maker: Step | None, program: Program, target: Target) -> Layout:
    readers = program.readers[value.name]
    border = (0, 0, 0, 0)
    for step in readers:
        if step.op in ("conv", "depthwise") and step.inputs[0] == value.name:
            need = frame(step, value, program.values[step.output])
            border = (max(border[0], need[0]), max(border[1], need[1]), max(border[2], need[2]), max(border[3], need[3]))
    planar = maker is not None and maker.op == "input" and value.shape[2:] != (1, 1) and all(s.op == "conv" and value.name not in s.inputs[1:] for s in readers)
    return Layout(value.shape, 1 if planar else _pitch(value, target), border, planar)


def _pitch(value: Value, target: Target) -> int:
    """Floats from one pixel to the next: the channels rounded up to a vector, and a cache line more where neighbouring pixels would share a few sets of the first-level cache.

    A convolution reads the same channel of some 30 pixels side by side. With 512 channels these lie 2 KB apart: in a cache of 64 sets, 8 lines each, only 16 of them fit.
    Measured, 512 -> 512 channels 3x3 at 14x14, 8.2x pruned: 29 GFLOP/s with a pitch of 512 floats, 75 with 528.
    """
    pitch = round_up(value.shape[1], target.narrow[-1])
    lines = pitch * 4 / LINE
    return pitch + LINE // 4 if value.shape[2:] != (1, 1) and lines % CROWDED == 0 else pitch


def frame(step: Step, source: Value, out: Value) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) pixels beyond the image that a convolution reads; for a folded one (arrange.py), pixels beyond ``source``, which space_to_depth made."""
    assert step.weight is not None
    first, behind = [], []
    for axis in (0, 1):
        pad, stride = step.attrs["padding"][axis], step.attrs["stride"][axis]
        reach = step.attrs["dilation"][axis] * (step.weight.shape[2 + axis] - 1) - pad
        if step.attrs.get("folded"):
            pad, reach, stride = -(-pad // 2), reach // 2, 1
        last = (out.shape[2 + axis] - 1) * stride + reach
        first.append(pad)
        behind.append(max(0, last - source.shape[2 + axis] + 1))
    return (first[0], first[1], behind[0], behind[1])


@dataclass(frozen=True)
class Plan:
    """Byte offset of each Value in the workspace, the bytes of all Values, and behind them ``scratch`` bytes for each of ``threads`` threads."""

    offsets: dict[str, int]
    size: int
    scratch: int = 0
    threads: int = 1

    @property
    def total(self) -> int:
        """Bytes of the whole workspace."""
        return self.size + self.threads * self.scratch


def plan(program: Program, placed: dict[str, Layout], scratch: int = 0, threads: int = 1) -> Plan:
    """First-fit: a Value or shared buffer takes the lowest free bytes from the step that first writes it to the last that reads it. ``scratch`` are the bytes that each thread needs for itself.

    For several threads small ones take the next free bytes behind the last one instead, as long as the workspace doesn't grow: memory that was used longer ago. What other cores have just read or
    written must be taken from them line by line before it can be written (a depthwise layer on planes of 14x14: 31 us instead of 12); one thread wants the memory that it has just used.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(program.steps):
        for name in (*step.inputs, step.output):
            if name in placed:
                owner = program.views[name][0] if name in program.views else name
                first.setdefault(owner, index)
                last[owner] = index
    live: list[tuple[int, int, str]] = []  # (offset, size, name)
    offsets: dict[str, int] = {}
    size = behind = 0
    for name in sorted(first, key=lambda n: (first[n], n)):
        live = [entry for entry in live if last[entry[2]] >= first[name]]
        need = round_up(placed[name].size * 4, ALIGNMENT)
        lowest, later = (_lowest(live, need, start) for start in (FRONT, max(FRONT, behind)))
        offsets[name] = later if threads > 1 and need <= SMALL and later + need <= size else lowest
        behind = offsets[name] + need
        live.append((offsets[name], need, name))
        size = max(size, behind)
    for name, (buffer, channel) in program.views.items():
        offsets[name] = offsets[buffer] + channel * placed[buffer].channel * 4
    return Plan(offsets, size, round_up(scratch, ALIGNMENT), threads)


def _lowest(live: list[tuple[int, int, str]], need: int, start: int) -> int:
    """The lowest ``need`` free bytes from ``start`` on."""
    position = start
    for offset, size, _ in sorted(live):
        if position + need <= offset:
            break
        position = max(position, offset + size)
    return position
