"""Filter pruning becomes smaller shapes: channels that are exactly zero wherever they are read vanish from producers and consumers, through sums, concatenations, slices and shuffles.

Decided by the values themselves, not by the scheme's word: a channel is removed only if its filter, bias and everything added to it are exactly zero in every tensor that a convolution reads.
What remains of a shuffle would be irregular: its result keeps the channels in the order in which its parts come, and whoever reads it has its weights in that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from stages.compiler.channels import Copied, copied, follow
from stages.compiler.ir import Program, Step, Value

_ZERO_AT_ZERO = frozenset({"relu", "relu6", "hardswish", "leaky_relu", "silu", "gelu", "tanh", "mish", "elu", "scale", "div"})


def shrink(program: Program) -> Program:
    """The Program without dead channels; the same results."""
    ids, pinned = follow(program)
    dead = _dead(program, ids, _zeros(program), pinned)
    if not dead.any():
        return program
    keep = _orders(program, ids, dead, pinned)
    values = {name: Value(name, (v.shape[0], len(keep[name]), *v.shape[2:])) for name, v in program.values.items()}
    steps: list[Step] = []
    for step in program.steps:
        steps += _fewer_copies(step, keep, {s.output for s in steps}) if step.op == "copy" else [_smaller(step, keep)]
    return replace(program, steps=tuple(steps), values=values)


def _zeros(program: Program) -> dict[str, np.ndarray]:
    """For each Value, which channels are exactly zero at every pixel."""
    zero: dict[str, np.ndarray] = {}
    for step in program.steps:
        if step.output not in program.values:
            continue
        channels = program.values[step.output].shape[1]
        if step.op == "copy":
            zero[step.output] = _zero_copies(step, zero.get(step.output, np.ones(channels, bool)), zero[step.inputs[0]])
        elif step.op in ("conv", "depthwise", "pool", "elementwise"):
            found = np.ones(channels, bool) if step.op == "conv" else zero[step.inputs[0]]
            if step.weight is not None and step.bias is not None:
                empty = ~step.weight.reshape(channels, -1).any(1)
                found = (empty if step.op == "conv" else empty | found) & (step.bias == 0)
            zero[step.output] = _after(step, found, zero)
        else:
            zero[step.output] = np.zeros(channels, bool)
    return zero


def _zero_copies(step: Step, before: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Zero channels of a Value after one of the copies that write it."""
    pairs = copied(step)
    if pairs is None or step.attrs["fill"]:
        return np.zeros_like(before)
    before = before.copy()
    before[pairs.write] &= source[pairs.read]
    return before


def _after(step: Step, found: np.ndarray, zero: dict[str, np.ndarray]) -> np.ndarray:
    """Zero channels after the epilogue."""
    for item in step.epilogue:
        name = item[0]
        if name in ("add", "sub", "rsub"):
            found = found & zero[step.inputs[1 + item[1]]]
        elif name == "mul":
            found = found | zero[step.inputs[1 + item[1]]]
        elif name == "affine":
            found = found & (step.attrs["shift"] == 0)
        elif name == "hardtanh":
            found = found & (item[1] <= 0 <= item[2])
        elif name not in _ZERO_AT_ZERO:
            found = np.zeros_like(found)
    return found


def _dead(program: Program, ids: Mapping[str, np.ndarray], zero: Mapping[str, np.ndarray], pinned: np.ndarray) -> np.ndarray:
    """The channels that are zero in all Values in which a convolution reads them; of every Value, and of every copy into one that is filled first, one channel stays."""
    read, live = np.zeros(len(pinned), bool), pinned.copy()
    for step in program.steps:
        if step.op == "conv":
            read[ids[step.inputs[0]]] = True
            live[ids[step.inputs[0]][~zero[step.inputs[0]]]] = True
    dead = read & ~live
    filled = [ids[step.inputs[0]][pairs.read] for step in program.steps if step.op == "copy" and step.attrs["fill"] is not None and (pairs := copied(step))]
    needed = [*ids.values(), *filled]
    while revived := [channels[0] for channels in needed if dead[channels].all()]:
        dead[revived] = False
    return dead


def _orders(program: Program, ids: Mapping[str, np.ndarray], dead: np.ndarray, pinned: np.ndarray) -> dict[str, np.ndarray]:
    """For each Value the channels that stay, in their new order. Values that must agree (those of one sum) have one order: as it was, or, where no convolution makes any of them, as its copies come."""
    alike = _alike(program)
    natural = {alike[step.output] for step in program.steps if step.op not in ("copy", "depthwise", "pool", "elementwise") and step.output in alike}
    orders: dict[str, np.ndarray] = {}
    for step in program.steps:
        name = step.output
        if name not in ids or alike[name] in orders:
            continue
        copies = [s for s in program.steps if s.op == "copy" and s.output == name]
        parts = [_in_order(pairs, orders.get(alike[s.inputs[0]])) for s in copies if s.attrs["fill"] is None and (pairs := copied(s)) is not None]
        order = np.concatenate(parts) if parts and len(parts) == len(copies) and alike[name] not in natural else np.arange(len(ids[name]))
        if len(order) != len(ids[name]) or len(np.unique(order)) != len(order) or pinned[ids[name]].any():
            order = np.arange(len(ids[name]))
        orders[alike[name]] = order[~dead[ids[name][order]]]
    return {name: orders.get(alike[name], np.flatnonzero(~dead[ids[name]])) for name in ids}


def _in_order(pairs: Copied, source: np.ndarray | None) -> np.ndarray:
    """The channels that a copy writes, in the order in which its source has them."""
    if source is None:
        return pairs.write
    place = {int(channel): k for k, channel in enumerate(source)}
    return pairs.write[np.argsort([place.get(int(c), len(place)) for c in pairs.read], kind="stable")]


def _alike(program: Program) -> dict[str, str]:
    """Values whose channels are numbered alike, because some step reads one and writes the other channel by channel: for each, the first of them."""
    parent = {name: name for name in program.values}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for step in program.steps:
        for name in step.inputs[1:] if step.op == "conv" else step.inputs:
            if step.op != "copy" and name in parent and step.output in parent:
                parent[find(name)] = find(step.output)
    return {name: find(name) for name in parent}


def _fewer_copies(step: Step, keep: Mapping[str, np.ndarray], written: set[str]) -> list[Step]:
    """The copies of a copy step's remaining channels, one for each run of them that lies evenly on both sides."""
    pairs = copied(step)
    if pairs is None:
        return [step]
    source, target = ({int(c): k for k, c in enumerate(keep[name])} for name in (step.inputs[0], step.output))
    moves = sorted((target[int(w)], source[int(r)]) for r, w in zip(pairs.read, pairs.write, strict=True) if int(w) in target)
    made: list[Step] = []
    for first, count, read_step, write_step in _even(moves):
        loops = (*pairs.rest, *([(count, (0, read_step, 0, 0), (0, write_step, 0, 0))] if count > 1 else []))
        places = {key: (*step.attrs[key][:1], channel, *step.attrs[key][2:]) for key, channel in (("write", first[0]), ("read", first[1]))}
        made.append(replace(step, attrs={**step.attrs, **places, "loops": loops, "first": step.output not in written and not made}))
    return made


def _even(moves: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int, int, int]]:
    """(target, source) channels as runs: (the first pair, how many, steps in the source, steps in the target). Only longer runs than two are worth a loop of other steps than 1."""
    begin = 0
    while begin < len(moves):
        steps = [(t - u, s - v) for (t, s), (u, v) in zip(moves[begin + 1 :], moves[begin:], strict=False)]
        count = 1 + next((k for k, step in enumerate(steps) if step != steps[0]), len(steps))
        if count == 2 and steps[0] != (1, 1):
            count = 1
        write, read = steps[0] if count > 1 else (1, 1)
        yield moves[begin], count, read, write
        begin += count


def _smaller(step: Step, keep: Mapping[str, np.ndarray]) -> Step:
    if step.output not in keep:
        return step
    out = keep[step.output]
    attrs = {**step.attrs, "scale": step.attrs["scale"][out], "shift": step.attrs["shift"][out]} if "scale" in step.attrs else step.attrs
    if step.weight is None or step.bias is None:
        return replace(step, attrs=attrs)
    weight = step.weight[out]
    if step.op == "conv":
        weight = weight[:, keep[step.inputs[0]]]
    return replace(step, attrs=attrs, weight=np.ascontiguousarray(weight), bias=step.bias[out])
