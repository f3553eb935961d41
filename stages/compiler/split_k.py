"""Which convolutions several threads divide by their input channels (split-K): each thread sums over the channels that it wrote itself, and the sums are added up behind.

The projection of an inverted residual reads many planes and writes few. Divided by filters, every thread reads all of its input, most of it from other cores' caches. Measured, two Granite Rapids cores,
384 -> 64 channels at 14x14, 1.8x pruned: as slow as on one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stages.compiler.ir import Layout, Program, Step, Value

_NARROWER = 3  # times the channels of the result that the input has at least
_LEAST = 64 << 10  # bytes of the input: what less takes is less than the second step
_GROUP = 8  # filters: both sums of a group of more would be computed together


def split_inputs(program: Program, planes: Mapping[str, Layout], threads: int) -> tuple[Program, dict[str, Layout]]:
    """The Program in which such a convolution is one with ``threads`` times as many filters, each with the weights of a share of the channels, and a "sum" step behind it; and the Layouts of all planes."""
    if threads == 1:
        return program, dict(planes)
    made = {step.output: step for step in program.steps}
    steps: list[Step] = []
    values, layouts = dict(program.values), dict(planes)
    for step in program.steps:
        if not _pays(step, made.get(step.inputs[0]) if step.inputs else None, program, planes):
            steps.append(step)
            continue
        sums = f"{step.output}:sums"
        n, filters, h, w = program.values[step.output].shape
        values[sums] = Value(sums, (n, threads * filters, h, w))
        layouts[sums] = replace(planes[step.output], shape=values[sums].shape)
        gate = step.inputs[-1:] if step.attrs.get("gate") else ()
        further = step.inputs[1 : len(step.inputs) - len(gate)]
        assert step.weight is not None and step.bias is not None
        weight, bias = _apart(step.weight, threads), np.concatenate([step.bias, np.zeros((threads - 1) * filters, np.float32)])
        attrs = {**step.attrs, "split": threads}
        steps.append(replace(step, inputs=(step.inputs[0], *gate), output=sums, attrs=attrs, weight=weight, bias=bias, epilogue=()))
        steps.append(Step(f"{step.name}:sum", "sum", (sums, *further), step.output, epilogue=step.epilogue))
    return replace(program, steps=tuple(steps), values=values), layouts


def _pays(step: Step, maker: Step | None, program: Program, planes: Mapping[str, Layout]) -> bool:
    """Whether ``step`` is a 1x1 convolution on planes that narrows what threads wrote by channels."""
    if step.op != "conv" or step.weight is None or step.weight.shape[2:] != (1, 1) or step.attrs["stride"] != (1, 1) or ("affine",) in step.epilogue:
        return False
    if step.output not in planes or planes[step.output].parts > 1 or maker is None or maker.op not in ("depthwise", "band") or maker.output not in planes:
        return False
    filters, channels = step.weight.shape[:2]
    if program.values[step.output].shape[0] > 1:  # threads have images of their own
        return False
    return filters % _GROUP == 0 and channels >= _NARROWER * filters and planes[maker.output].size * 4 >= _LEAST


def _apart(weight: np.ndarray, threads: int) -> np.ndarray:
    """(o, i, 1, 1) -> (threads * o, i, 1, 1): the weights of each share of the channels as filters of their own. The shares are those of a depthwise layer's planes (npas_run.c)."""
    filters, channels = weight.shape[:2]
    found = np.zeros((threads, *weight.shape), np.float32)
    for thread in range(threads):
        mine = slice(channels * thread // threads, channels * (thread + 1) // threads)
        found[thread, :, mine] = weight[:, mine]
    return found.reshape(threads * filters, *weight.shape[1:])
