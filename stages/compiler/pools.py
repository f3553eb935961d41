"""Max pooling by 2x2 in one kernel with the convolution before it, where that runs by Winograd's method: its results are in registers, a tile at a time, and only every fourth is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.compiler.ir import Epilogue, Layout, Program, Step
from stages.compiler.kernels import winograd
from stages.compiler.kernels.kernel import Kernel

_RISING = frozenset({"relu", "relu6", "hardtanh", "hardsigmoid"})  # activations that may as well come behind the pooling: the largest of several stays the largest


def fuse_pools(program: Program, kernels: Sequence[Kernel], layouts: Mapping[str, Layout]) -> tuple[Program, list[Kernel]]:
    """The Program and its ``kernels``, those of each step, with one "conv_pool" step for each convolution by Winograd's method that is read by nothing but a pooling of its non-overlapping 2x2 squares."""
    pools = {step.inputs[0]: step for step in program.steps if _halves(step, program)}
    steps: list[Step] = []
    found: list[Kernel] = []
    gone: set[str] = set()
    for step, kernel in zip(program.steps, kernels, strict=True):
        pool = pools.get(step.output)
        if step.output in gone:
            continue
        if pool is not None and step.op == "conv" and _alone(step, pool, program):
            both = replace(step, op="conv_pool", output=pool.output)
            made = winograd.pooled(kernel, both, layouts[pool.output])
            if made is not None:
                step, kernel = both, made
                gone.add(pool.output)
        steps.append(step)
        found.append(kernel)
    return replace(program, steps=tuple(steps)), found


def _halves(step: Step, program: Program) -> bool:
    """Whether ``step`` is the largest of each 2x2 of its operand, and nothing else."""
    if step.op != "pool" or step.attrs["kind"] != "max" or step.epilogue:
        return False
    _, _, *sizes = program.values[step.inputs[0]].shape
    return all([window[:2] for window in step.attrs[axis]] == [(i, i + 2) for i in range(0, size, 2)] for axis, size in zip(("rows", "cols"), sizes, strict=True))


def _alone(step: Step, pool: Step, program: Program) -> bool:
    """Whether only ``pool`` reads the result of the convolution ``step``, which isn't part of a shared buffer, and its activation may come behind the pooling."""
    return program.readers[step.output] == (pool,) and len(step.inputs) == 1 and step.output not in program.views and _rises(step.epilogue)


def _rises(items: Epilogue) -> bool:
    return all(item[0] in _RISING for item in items)
