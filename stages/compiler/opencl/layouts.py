"""Where activations lie on a GPU: planes with the frames that convolutions read, and few device buffers, used again as soon as nobody reads them. Imports numpy only."""

from __future__ import annotations

from dataclasses import dataclass

from stages.compiler.ir import Layout, Program
from stages.compiler.plan import frame

INPUT, OUTPUT = "input:", "output:"


def layouts(program: Program) -> dict[str, Layout]:
    """A Layout for each Value and for what the caller sees of it: planes (n, c, h, w) one after the other.

    Whoever writes a Value also writes zeros into its frame, so that convolutions read beyond the image without asking.
    """
    found = {}
    for name, value in program.values.items():
        border = (0, 0, 0, 0)
        for step in program.readers[name]:
            if step.op in ("conv", "depthwise") and step.inputs[0] == name:
                need = frame(step, value, program.values[step.output])
                border = (max(border[0], need[0]), max(border[1], need[1]), max(border[2], need[2]), max(border[3], need[3]))
        found[name] = Layout(value.shape, 1, border, planar=True)
    for step in program.steps:
        if step.op == "input":
            found[step.inputs[0]] = Layout(found[step.output].shape, 1, planar=True)
        elif step.op == "output":
            found[step.output] = Layout(found[step.inputs[0]].shape, 1, planar=True)
    return found


@dataclass(frozen=True)
class Memory:
    """``floats`` of each device buffer, and the buffer of each name in ``place``. What the caller sees has buffers of its own."""

    floats: tuple[int, ...]
    place: dict[str, int]


def share_memory(program: Program, placed: dict[str, Layout]) -> Memory:
    """A Value takes the smallest free buffer that holds it, else the largest free one, which grows, else a new one; it is free after the last step that reads it.

    Whole buffers rather than parts of one: OpenCL aligns sub-buffers as it likes, and phones limit the size of one allocation.
    """
    last = {name: index for index, step in enumerate(program.steps) for name in (*step.inputs, step.output)}
    floats: list[int] = []
    place: dict[str, int] = {}
    free: list[int] = []
    for index, step in enumerate(program.steps):
        for name in dict.fromkeys((*step.inputs, step.output)):
            if name in place:
                continue
            need, own = placed[name].size, name.startswith((INPUT, OUTPUT))
            large = [b for b in free if floats[b] >= need]
            if own or not free:
                place[name] = len(floats)
                floats.append(need)
            else:
                place[name] = min(large, key=lambda b: (floats[b], b)) if large else max(free, key=lambda b: (floats[b], -b))
                floats[place[name]] = max(floats[place[name]], need)
                free.remove(place[name])
        read = dict.fromkeys((*step.inputs, step.output))
        free += [place[name] for name in read if last[name] == index and not name.startswith((INPUT, OUTPUT))]
    return Memory(tuple(floats), place)
