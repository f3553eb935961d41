"""Which depthwise convolutions run in one kernel with the convolution before them (the expansion of an inverted residual, a network's first layer), by bands of rows (kernels/planar_band.py): those on planes whose operand exceeds the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stages.compiler.ir import Layout, Program, Step, costly
from stages.compiler.kernels import planar_band, planar_depthwise
from stages.compiler.plan import FRONT
from stages.compiler.target import Target

CACHE_BYTES = 512 * 1024  # of the second level; an expanded activation beyond that would be written to, and read from, slower memory


def fuse_bands(program: Program, planes: Mapping[str, Layout], target: Target, least: int = CACHE_BYTES) -> Program:
    """The Program in which a convolution and the depthwise one that alone reads it are one "band" step (``attrs["expand"]`` is the convolution), where its result takes more than ``least`` bytes."""
    made = {step.output: step for step in program.steps}
    pairs = {step.output: made[step.inputs[0]] for step in program.steps if step.op == "depthwise" and _fits(step, made.get(step.inputs[0]), program, planes, target, least)}
    gone = {expand.output for expand in pairs.values()}
    steps = []
    for step in program.steps:
        if step.output in gone:
            continue
        expand = pairs.get(step.output)
        if expand:
            attrs = {**step.attrs, "expand": expand}
            step = replace(step, op="band", inputs=(expand.inputs[0], *step.inputs[1:]), attrs=attrs, scheme=expand.scheme, macs=step.macs + expand.macs)
        steps.append(step)
    return replace(program, steps=tuple(steps), values={name: value for name, value in program.values.items() if name not in gone})


def _fits(step: Step, expand: Step | None, program: Program, planes: Mapping[str, Layout], target: Target, least: int) -> bool:
    if expand is None or expand.op != "conv" or len(expand.inputs) != 1 or expand.attrs.get("gate"):
        return False
    names = (expand.inputs[0], expand.output, step.output)
    if any(name not in planes for name in names) or program.readers[expand.output] != (step,) or expand.output in step.inputs[1:]:
        return False
    plain = not costly(expand.epilogue) and ("affine",) not in expand.epilogue and planar_band.reach(step, expand, planes[expand.inputs[0]]) <= FRONT
    shape, out = program.values[expand.output].shape, program.values[step.output].shape
    return plain and planar_depthwise.fits(step, shape, out, target) and planes[expand.output].size * 4 > least * shape[0]
