"""Fusion: batch norms and per-channel scales go into weights; activations, residual sums and gates go into the step that makes their operand, so that no result is stored only to be read once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stages.compiler.ir import Program, Step
from stages.compiler.lowering import drop_unread

_HOSTS = frozenset({"conv", "depthwise", "pool", "layer_norm", "softmax", "elementwise"})
_OPERANDS = 3  # further operands that a kernel's signature has room for
_BINARY = frozenset({"add", "sub", "rsub", "mul", "div", "rdiv"})
_SWAPPED = {"add": "add", "mul": "mul", "sub": "rsub", "rsub": "sub", "div": "rdiv", "rdiv": "div"}


def fuse(program: Program) -> Program:
    """The Program with every elementwise step merged into its operand's producer where that producer runs late enough and has no other reader."""
    done: list[Step] = []
    for step in program.steps:
        if step.op != "elementwise" or not _merge(done, step, program):
            done.append(step)
    return drop_unread(replace(program, steps=tuple(done)))


def _merge(done: list[Step], step: Step, program: Program) -> bool:
    makers = {s.output: index for index, s in enumerate(done)}
    for variant in sorted(_variants(step, program), key=lambda v: -makers.get(v.inputs[0], -1)):
        index = makers.get(variant.inputs[0])
        if index is None or not _hosts(done[index], variant, program):
            continue
        if any(makers.get(name, -1) >= index for name in variant.inputs[1:]):
            continue  # the host would run before its new operand exists
        merged = _merged(done[index], variant)
        if merged is not None:
            done[index] = merged
            return True
    return False


def _variants(step: Step, program: Program) -> list[Step]:
    """The step itself, and with its two operands exchanged when both have the result's shape."""
    found = [step]
    if len(step.epilogue) == 1 and step.epilogue[0][0] in _BINARY and program.values[step.inputs[1]].shape == program.values[step.output].shape:
        found.append(replace(step, inputs=step.inputs[::-1], epilogue=((_SWAPPED[step.epilogue[0][0]], 0),)))
    return found


def _hosts(host: Step, step: Step, program: Program) -> bool:
    alone = len(program.readers[host.output]) == 1 and host.output not in step.inputs[1:]
    same = program.values[host.output].shape == program.values[step.output].shape
    return host.op in _HOSTS and alone and same and len(host.inputs) + len(step.inputs) - 2 <= _OPERANDS


def _merged(host: Step, step: Step) -> Step | None:
    shift = len(host.inputs) - 1
    items = tuple((item[0], item[1] + shift) if item[0] in _BINARY else item for item in step.epilogue)
    joined = replace(host, inputs=(*host.inputs, *step.inputs[1:]), output=step.output)
    if ("affine",) not in items:
        return replace(joined, epilogue=(*host.epilogue, *items))
    if host.op in ("conv", "depthwise") and not host.epilogue:
        return replace(_scaled(joined, step.attrs), epilogue=tuple(i for i in items if i != ("affine",)))
    if host.op == "elementwise" and ("affine",) not in host.epilogue:
        return replace(joined, epilogue=(*host.epilogue, *items), attrs=step.attrs)
    return None


def _scaled(step: Step, attrs: Any) -> Step:
    """Weights and bias of a convolution followed by a scale and a shift per channel, folded in double precision."""
    assert step.weight is not None and step.bias is not None
    weight = np.empty_like(step.weight)
    for filter_, scale in enumerate(attrs["scale"]):  # one by one: twice a large layer's weights needn't be in memory
        weight[filter_] = step.weight[filter_].astype(np.float64) * scale
    bias = step.bias.astype(np.float64) * attrs["scale"] + attrs["shift"]
    return replace(step, weight=weight, bias=bias.astype(np.float32))
