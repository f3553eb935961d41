"""Squeeze-and-excitation gates go into the weights of the convolution behind them, where scaling these is cheaper than a pass over the activation: where they are fewer.

Measured, Zen 3, 2x pruned: 1152 to 192 channels at 7x7 (110 thousand weights, 56 thousand pixels) 192 us with scaled weights, 160 and 21 without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from stages.compiler.ir import Layout, Program, Step

_OPERANDS = 3  # further operands that a kernel's signature has room for


def absorb_gates(program: Program, planes: Mapping[str, Layout]) -> Program:
    """The Program in which a product with one number a channel, read by nothing but a 1x1 convolution on planes, is that convolution's last operand (``attrs["gate"]``)."""
    gates = {step.output: step for step in program.steps if _is_gate(step, program, planes)}
    hosts = {step.inputs[0]: step for step in program.steps if step.op == "conv" and step.inputs[0] in gates and _absorbs(step, program, planes)}
    steps = []
    for step in program.steps:
        if step.output in hosts:
            continue
        if step.op == "conv" and hosts.get(step.inputs[0]) is step:
            gate = gates[step.inputs[0]]
            step = replace(step, inputs=(gate.inputs[0], *step.inputs[1:], gate.inputs[1]), attrs={**step.attrs, "gate": True})
        steps.append(step)
    return replace(program, steps=tuple(steps))


def _is_gate(step: Step, program: Program, planes: Mapping[str, Layout]) -> bool:
    if step.op != "elementwise" or step.epilogue != (("mul", 0),) or step.output not in planes or step.inputs[0] not in planes:
        return False
    batch, channels, _, _ = program.values[step.output].shape
    return batch == 1 and program.values[step.inputs[1]].shape == (1, channels, 1, 1)


def _absorbs(step: Step, program: Program, planes: Mapping[str, Layout]) -> bool:
    assert step.weight is not None
    alone = program.readers[step.inputs[0]] == (step,) and step.inputs[0] not in step.inputs[1:]
    fewer = bool(np.count_nonzero(step.weight) <= prod(program.values[step.inputs[0]].shape))  # each thread scales all weights
    return alone and fewer and step.output in planes and step.attrs["stride"] == (1, 1) and step.weight.shape[2:] == (1, 1) and len(step.inputs) <= _OPERANDS
