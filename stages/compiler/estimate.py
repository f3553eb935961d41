"""Estimated processor cycles of a step before its kernel is built, to compare arrangements (arrange.py). Imports numpy only.

Convolutions are estimated by the models that choose their tiles; the rest by factors fitted to one Zen 4 core (a multiply-add of a widest vector a cycle). On other processors they only rank.
"""

from __future__ import annotations

from math import prod

from stages.compiler.ir import Program, Step
from stages.compiler.kernels import packing, planar, planar_conv_cost, planar_depthwise, space_to_depth, winograd_cost
from stages.compiler.target import Target
from stages.compiler.tiles import Window

RELAYOUT = (0.75, 1.8)  # cycles per float, in and beyond the second-level cache
L2_FLOATS = 1 << 17
DEPTHWISE = {1: 1.3, 2: 2.4}  # times the multiply-adds of full vectors, by stride


def estimate(step: Step, program: Program, on_planes: bool, target: Target) -> float:
    """Cycles of ``step`` with its result on planes or pixel-major; 0 for what takes the same time either way."""
    if step.op == "relayout":
        floats = prod(program.values[step.output].shape)
        return RELAYOUT[floats > L2_FLOATS] * floats
    if step.op == "space_to_depth":
        return space_to_depth.CYCLES * prod(program.values[step.output].shape)
    if step.op == "depthwise":
        return _depthwise(step, program, on_planes, target)
    if step.op != "conv" or program.values[step.output].shape[2:] == (1, 1):
        return 0.0
    assert step.weight is not None
    n, _, h, w = program.values[step.output].shape
    if on_planes:
        return planar_conv_cost.choose(step, planar.layout((n, len(step.weight), h, w), step.attrs["padding"][0]), target)[0]
    window = Window(step.weight.shape[2:], step.attrs["stride"], step.weight.shape[1])
    direct = packing.estimate(packing.positions(step.weight), (n, h, w), target, window)
    if step.weight.shape[2:] == (3, 3) and step.attrs["stride"] == step.attrs["dilation"] == (1, 1):
        return min(direct, winograd_cost.choose((n, h, w), step.weight.shape[1], len(step.weight), target)[0])
    return direct


def _depthwise(step: Step, program: Program, on_planes: bool, target: Target) -> float:
    assert step.weight is not None
    out, kernel, stride = program.values[step.output].shape, step.weight.shape[2:], min(2, step.attrs["stride"][0])
    if on_planes:
        return DEPTHWISE[stride] * planar_depthwise.cycles(out, out[3] + step.attrs["padding"][1], kernel, step.attrs["stride"], target)
    return DEPTHWISE[stride] * prod(out) * prod(kernel) / target.lanes * (1.0 if target.fused_narrow else 0.5)
