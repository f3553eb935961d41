"""A network's kernels, their OpenCL C, and the plan of launches. Imports TVM only when it writes code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stages.compiler.ir import Layout, Program, Step, round_up
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.opencl.layouts import INPUT, OUTPUT, Memory
from stages.compiler.opencl.walk import LOCAL
from stages.errors import UnsupportedOperator

RULES = ("pointwise", "matvec", "conv", "depthwise", "global_pool", "pool", "copy", "normalise")  # modules of stages/compiler/opencl/kernels, asked in this order
_UNFIT, _LONGEST = re.compile(r'["\\]'), 200  # what the runner's reader of plan.json can't take in a name, and its longest one
STORAGES = {"float32": 4, "float16": 2}  # of activations and weights, and their bytes; sums are always float32


def select(steps: Sequence[Step], placed: Mapping[str, Layout], storage: str) -> list[Kernel]:
    """The kernels of all steps, in the order of their launches. UnsupportedOperator for a step that no rule takes."""
    found: list[Kernel] = []
    for step in steps:
        place = Placed(step, tuple(placed[name] for name in step.inputs), placed[step.output])
        kernels = next((made for rule in RULES if (made := _module(rule).build(place, storage))), None)
        if kernels is None:
            raise UnsupportedOperator(
                f"No OpenCL kernel runs the operation '{step.op}' of layer '{step.name}'.", "Add a rule to stages/compiler/opencl/kernels/, or compile with --backend cpu."
            )
        found += kernels
    return found


def names(kernels: Sequence[Kernel]) -> list[str]:
    """The kernels' names in the source; those with equal specs are one."""
    known: dict[Any, str] = {}
    return [known.setdefault((k.rule, k.spec), f"{k.rule}_{len(known)}") for k in kernels]


def row(kernel: Kernel, name: str) -> dict[str, Any]:
    """What the manifest tells of a launch."""
    step = kernel.step
    return {"layer": step.name, "kernel": name, "scheme": step.scheme.label, "tile": kernel.tile, "macs": kernel.macs, "reason": kernel.reason}


def source(kernels: Sequence[Kernel]) -> str:
    """OpenCL C of all distinct kernels."""
    from stages.compiler.opencl import code, parameters

    distinct = dict(zip(names(kernels), kernels, strict=True))
    return parameters.PRELUDE + "".join(code.source(_module(k.rule).emit(k.spec, name)) for name, k in distinct.items())


def launch_plan(program: Program, kernels: Sequence[Kernel], memory: Memory, places: Sequence[Mapping[str, int]], storage: str) -> dict[str, Any]:
    """What the runner does. Buffers are numbered: first those of ``memory``, then the arrays of weights.bin, which begin at ``places``.

    ``launches``: kernel, work items in all and in a group, and the buffers that are its arguments. runner.c reads the entries in the order in which they stand here.
    """
    arrays: dict[tuple[int, int], int] = {}
    for kernel, where in zip(kernels, places, strict=True):
        for name, array in kernel.data.items():
            arrays.setdefault((where[name], array.nbytes), len(memory.floats) + len(arrays))
    launches = []
    for kernel, name, where in zip(kernels, names(kernels), places, strict=True):
        owners = dict(zip(("x", "e0", "e1", "e2"), kernel.step.inputs, strict=False)) | {"y": kernel.step.output}
        arguments = [arrays[where[n], kernel.data[n].nbytes] if n in kernel.data else memory.place[owners[n]] for n, _ in kernel.spec.types]
        launches.append({"layer": _UNFIT.sub("_", kernel.step.name)[-_LONGEST:], "kernel": name, "items": round_up(kernel.units, LOCAL), "group": LOCAL, "arguments": arguments})
    caller = {number for name, number in memory.place.items() if name.startswith((INPUT, OUTPUT))}
    sizes = [count * (4 if number in caller else STORAGES[storage]) for number, count in enumerate(memory.floats)]
    return {
        "schema": "npas-opencl-plan/1",
        "buffers": sizes,
        "arrays": [[offset, size] for offset, size in arrays],
        "inputs": [memory.place[f"{INPUT}{k}"] for k in range(len(program.inputs))],
        "outputs": [memory.place[f"{OUTPUT}{k}"] for k in range(len(program.outputs))],
        "launch_count": len(launches),
        "launches": launches,
    }


def _module(rule: str) -> Any:
    return importlib.import_module(f"stages.compiler.opencl.kernels.{rule}")
