"""Which activations are planes (NCHW, vectors along pixels) and which pixel-major (NHWC, vectors along channels): decided by resolution, by estimated time, with the transforms in between.

All planes of one resolution share a geometry (kernels/planar.py), and the layers of a resolution are alike, so the choice is one per resolution: a handful of yes or no for a network. A set of
resolutions fixes everything: each step runs on planes where its operand's resolution is in the set and a kernel for planes exists, and a "relayout" step stands where a reader wants the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from stages.compiler.estimate import estimate
from stages.compiler.ir import Layout, Program, Step, Value
from stages.compiler.kernels import planar
from stages.compiler.kernels.pool import runs
from stages.compiler.target import Target

Resolution = tuple[int, int]
MOST = 6  # resolutions, the largest work first, of which all subsets are tried


@dataclass(frozen=True)
class Arranged:
    """A Program with its relayout steps, and the Layouts of those of its Values that are planes."""

    program: Program
    planes: Mapping[str, Layout]


def resolution(program: Program, name: str) -> Resolution:
    """Height and width of a Value."""
    _, _, h, w = program.values[name].shape
    return (h, w)


def arrange(program: Program, target: Target, cost: Callable[[Step, Program, bool, Target], float] = estimate) -> Arranged:
    """The cheapest arrangement. ``cost(step, program, result on planes, target)`` estimates cycles; "relayout" steps are asked for too."""
    known: dict[tuple[str, bool], float] = {}

    def total(made: Program, on_planes: Collection[str]) -> float:
        for step in made.steps:
            key = (step.output, step.output in on_planes)
            if key not in known:
                known[key] = cost(step, made, key[1], target)
        return sum(known[step.output, step.output in on_planes] for step in made.steps)

    candidates = _candidates(program, target)
    if not candidates:
        return Arranged(program, {})
    sets = [chosen for size in range(len(candidates) + 1) for chosen in combinations(candidates, size)]
    best = min((_rewritten(program, chosen, target) for chosen in sets), key=lambda found: total(*found))
    return Arranged(best[0], _geometry(*best))


def _candidates(program: Program, target: Target) -> list[Resolution]:
    """Resolutions at which a convolution is sparse and could run on planes, those of the largest work first."""
    work: dict[Resolution, int] = {}
    for step in program.steps:
        if step.op == "conv" and step.scheme.pruning != "none" and can(step, program, target):
            here = resolution(program, step.inputs[0])
            work[here] = work.get(here, 0) + step.macs
    return sorted(work, key=lambda r: -work[r])[:MOST]


def can(step: Step, program: Program, target: Target) -> bool:
    """Whether a kernel runs ``step`` on planes."""
    name = step.output
    if name not in program.values:
        return step.op == "output" and step.inputs[0] not in program.views and resolution(program, step.inputs[0]) != (1, 1)
    if name in program.views or any(x in program.views for x in step.inputs):
        return False
    out = program.values[name].shape
    if step.op == "input":
        return out[2:] != (1, 1)
    source = program.values[step.inputs[0]].shape
    wide = out[3] >= target.narrow[-1]
    if step.op == "conv":
        assert step.weight is not None
        a, kernel = step.attrs, step.weight.shape[2:]
        same = all(2 * a["padding"][i] == a["dilation"][i] * (kernel[i] - 1) for i in (0, 1)) and a["padding"][0] == a["padding"][1]
        return wide and (a["stride"] == (2, 2) or (a["stride"] == (1, 1) and same and out[2:] == source[2:]))
    if step.op == "depthwise":
        return wide and step.attrs["dilation"] == (1, 1) and step.attrs["stride"] in ((1, 1), (2, 2))
    if step.op == "pool":
        return _pools(step, out, wide, source)
    return step.op == "elementwise" and source == out and out[2:] != (1, 1)


def _pools(step: Step, out: tuple[int, ...], wide: bool, source: tuple[int, ...]) -> bool:
    rows, cols = runs(step.attrs["rows"]), runs(step.attrs["cols"])
    if len(rows) != 1 or len(cols) != 1 or (rows[0][5], cols[0][5]) != (rows[0][4], cols[0][4]):
        return False
    if out[2:] == (1, 1):
        return source[2:] != (1, 1) and len(step.inputs) == 1
    return wide and rows[0][3] == cols[0][3] and cols[0][3] in (1, 2)


def _rewritten(program: Program, chosen: Collection[Resolution], target: Target) -> tuple[Program, set[str]]:
    """(the Program with relayout steps, the names of the Values that are planes) when the resolutions ``chosen`` run on planes."""
    if not chosen:
        return program, set()
    steps: list[Step] = []
    values = dict(program.values)
    on_planes: set[str] = set()

    def wanted(name: str, planes: bool) -> str:
        if name not in values or values[name].shape[2:] == (1, 1) or (name in on_planes) == planes:
            return name
        twin = f"{name}:{'planes' if planes else 'pixels'}"
        if twin not in values:
            values[twin] = replace(values[name], name=twin)
            steps.append(Step(twin, "relayout", (name,), twin))
            on_planes.update({twin} if planes else ())
        return twin

    for step in program.steps:
        name = step.output
        first = name if step.op == "input" else step.inputs[0]
        run = can(step, program, target) and resolution(program, first) in chosen
        ins = list(step.inputs)
        if step.op == "output":
            steps.append(step)
            continue
        if step.op != "input":
            reads_either = step.op == "conv" and not run
            ins = [x if i == 0 and reads_either else wanted(x, run) for i, x in enumerate(ins)]
        steps.append(replace(step, inputs=tuple(ins)))
        if run and values[name].shape[2:] != (1, 1):
            on_planes.add(name)
    return replace(program, steps=tuple(steps), values=values), on_planes


def _geometry(program: Program, on_planes: Collection[str]) -> dict[str, Layout]:
    """The Layouts of planes: one frame for each resolution, as wide as the widest reader needs."""
    pads: dict[Resolution, int] = {}
    for step in program.steps:
        if step.op in ("conv", "depthwise") and step.inputs[0] in on_planes:
            assert step.weight is not None
            here, reach = resolution(program, step.inputs[0]), _reach(step, program.values[step.inputs[0]], program.values[step.output])
            pads[here] = max(pads.get(here, 0), reach)
    return {name: planar.layout(program.values[name].shape, pads.get(resolution(program, name), 0)) for name in on_planes}


def _reach(step: Step, source: Value, out: Value) -> int:
    """Pixels that a convolution reads beyond the image, on any side."""
    assert step.weight is not None
    found = 0
    for axis in (0, 1):
        pad, reach = step.attrs["padding"][axis], step.attrs["dilation"][axis] * (step.weight.shape[2 + axis] - 1)
        last = (out.shape[2 + axis] - 1) * step.attrs["stride"][axis] + reach - pad
        found = max(found, pad, last - source.shape[2 + axis] + 1)
    return found
