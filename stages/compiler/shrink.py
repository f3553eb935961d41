"""Filter pruning becomes smaller shapes: channels that are exactly zero wherever they are read vanish from producers and consumers.

Decided by the values themselves, not by the scheme's word: a channel is removed only if its filter, bias and everything added to it are exactly zero in every tensor that a convolution reads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stages.compiler.ir import Program, Step, Value

_ZERO_AT_ZERO = frozenset({"relu", "relu6", "hardswish", "leaky_relu", "silu", "gelu", "tanh", "mish", "elu", "scale", "div"})
_FIXED = ""
_FIXED_OPS = frozenset({"input", "output", "copy", "layer_norm", "softmax"})  # channels that they read and write all stay


def shrink(program: Program) -> Program:
    """The Program without dead channels; the same results."""
    classes = _classes(program)
    zero = _zeros(program)
    dead = _dead(program, classes, zero)
    if not any(d.any() for d in dead.values()):
        return program
    keep = {name: ~dead[classes[name]] if classes[name] in dead else np.ones(value.shape[1], bool) for name, value in program.values.items()}
    values = {name: Value(name, (v.shape[0], int(keep[name].sum()), *v.shape[2:])) for name, v in program.values.items()}
    return replace(program, steps=tuple(_smaller(step, keep) for step in program.steps), values=values)


def _classes(program: Program) -> dict[str, str]:
    """For each Value, the name of its channel class: Values whose channel c is removed together; "" where all channels stay."""
    parent = {name: name for name in (*program.values, _FIXED)}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        a, b = sorted((find(a), find(b)))
        parent[b] = a  # the fixed class sorts first

    for step in program.steps:
        for name in (*step.inputs, step.output) if step.op in _FIXED_OPS else ():
            if name in parent:
                join(_FIXED, name)
        joined = step.inputs[1:] if step.op == "conv" else step.inputs
        for name in joined if step.op in ("conv", "depthwise", "pool", "elementwise") else ():
            join(step.output, name)
    return {name: find(name) for name in program.values}


def _zeros(program: Program) -> dict[str, np.ndarray]:
    """For each Value, which channels are exactly zero at every pixel."""
    zero: dict[str, np.ndarray] = {}
    for step in program.steps:
        if step.output not in program.values:
            continue
        channels = program.values[step.output].shape[1]
        if step.op in _FIXED_OPS:
            zero[step.output] = np.zeros(channels, bool)
            continue
        found = np.ones(channels, bool) if step.op == "conv" else zero[step.inputs[0]]
        if step.weight is not None and step.bias is not None:
            empty = ~step.weight.reshape(channels, -1).any(1)
            found = (empty if step.op == "conv" else empty | found) & (step.bias == 0)
        zero[step.output] = _after(step, found, zero)
    return zero


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


def _dead(program: Program, classes: dict[str, str], zero: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each class, the channels that are zero in all its Values that a convolution reads; one channel always stays."""
    dead: dict[str, np.ndarray] = {}
    for step in program.steps:
        if step.op == "conv" and classes[step.inputs[0]] != _FIXED:
            name = classes[step.inputs[0]]
            found = zero[step.inputs[0]]
            dead[name] = dead[name] & found if name in dead else found.copy()
    for found in dead.values():
        if found.all():
            found[0] = False
    return dead


def _smaller(step: Step, keep: dict[str, np.ndarray]) -> Step:
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
