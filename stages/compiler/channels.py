"""Which channels of a Program's Values are one and the same, copies included. Imports the compiler's values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.compiler.ir import Program, Step
from stages.compiler.lowering import Loop
from stages.compiler.refs import C

_FREE = frozenset({"conv", "depthwise", "pool", "elementwise", "copy"})  # whatever else reads or writes a Value needs all its channels at their places


@dataclass(frozen=True)
class Copied:
    """What a copy step does to channels: channel ``read[k]`` of its source becomes channel ``write[k]`` of its target. ``rest`` are its loops over everything else."""

    read: np.ndarray
    write: np.ndarray
    rest: tuple[Loop, ...]


def copied(step: Step) -> Copied | None:
    """The channels that a copy step moves; None where it moves channels to rows, columns or images, or back."""
    across = [loop for loop in step.attrs["loops"] if loop[1][C] or loop[2][C]]
    if any(not (read[C] and write[C]) or any(read[k] or write[k] for k in range(4) if k != C) for _, read, write in across):
        return None
    read, write = np.array([step.attrs["read"][C]]), np.array([step.attrs["write"][C]])
    for count, read_step, write_step in across:
        read = np.add.outer(read, np.arange(count) * read_step[C]).ravel()
        write = np.add.outer(write, np.arange(count) * write_step[C]).ravel()
    return Copied(read, write, tuple(loop for loop in step.attrs["loops"] if not (loop[1][C] or loop[2][C])))


def follow(program: Program) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(for each Value the number of each of its channels, the same wherever a channel comes by; for each number whether the channel must stay)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sizes = {name: value.shape[C] for name, value in program.values.items()}
    starts = dict(zip(sizes, np.cumsum([1, *sizes.values()]), strict=False))
    own = {name: np.arange(starts[name], starts[name] + size) for name, size in sizes.items()}
    joins: list[tuple[np.ndarray, np.ndarray]] = []
    for step in program.steps:
        operands = [name for name in (step.inputs[1:] if step.op == "conv" else step.inputs) if name in own]
        pairs = copied(step) if step.op == "copy" else None
        if step.op not in _FREE or (step.op == "copy" and pairs is None):
            joins += [(own[name], np.zeros(sizes[name], int)) for name in (*operands, step.output) if name in own]  # number 0 must stay
        elif pairs is not None:
            joins.append((own[step.inputs[0]][pairs.read], own[step.output][pairs.write]))
        else:
            joins += [(own[name], own[step.output]) for name in operands]
    rows, columns = _together([a for a, _ in joins]), _together([b for _, b in joins])
    total = 1 + sum(sizes.values())
    number = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (total, total)), directed=False)[1]
    pinned = np.arange(number.max() + 1) == number[0]
    return {name: number[channels] for name, channels in own.items()}, pinned


def _together(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, int), *parts])
