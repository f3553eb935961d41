"""Which activations are planes (NCHW, vectors along pixels) and which pixel-major (NHWC, vectors along channels): decided by resolution, with the transforms in between, by estimated time or as measured.

All planes of one resolution share a geometry (kernels/planar.py), and the layers of a resolution are alike, so the choice is one per resolution: a handful of yes or no for a network. A set of
resolutions fixes everything: each step runs on planes where its operand's resolution is in the set and a kernel for planes exists, and a "relayout" step stands where a reader wants the other.
In front of convolutions with stride 2 on planes stands a "space_to_depth" step. The estimates rank the sets (rank); tuning/arrangements.py measures the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from stages.compiler.estimate import estimate
from stages.compiler.ir import Layout, Program, Step, Value
from stages.compiler.kernels import planar, planar_conv, planar_depthwise, planar_elementwise, planar_pool, space_to_depth
from stages.compiler.plan import frame
from stages.compiler.target import Target

Resolution = tuple[int, int]
Resolutions = tuple[Resolution, ...]
RULES = {"conv": (planar_conv,), "depthwise": (planar_depthwise,), "pool": (planar_pool,), "elementwise": (planar_elementwise,)}  # kernels on planes, by operation
MOST = 6  # resolutions, the largest work first, of which all subsets are tried


@dataclass(frozen=True)
class Arranged:
    """A Program with its relayout steps, and the Layouts of those of its Values that are planes."""

    program: Program
    planes: Mapping[str, Layout]
    resolutions: Resolutions = ()


def resolution(program: Program, name: str) -> Resolution:
    """Height and width of a Value."""
    _, _, h, w = program.values[name].shape
    return (h, w)


def arrange(program: Program, target: Target, cost: Callable[[Step, Program, bool, Target], float] = estimate, threads: int = 1) -> Arranged:
    """The arrangement that is estimated to be the fastest, for ``threads`` threads."""
    return arranged(program, rank(program, target, cost)[0][1], target, threads)


def arranged(program: Program, chosen: Resolutions, target: Target, threads: int = 1) -> Arranged:
    """The arrangement in which the resolutions ``chosen`` run on planes."""
    rewritten, on_planes = _fold_input(*_rewritten(program, chosen, target))
    return Arranged(rewritten, _geometry(rewritten, on_planes, threads, target), chosen)


def rank(program: Program, target: Target, cost: Callable[[Step, Program, bool, Target], float] = estimate) -> list[tuple[float, Resolutions]]:
    """(estimated cycles, resolutions on planes) of all arrangements, the fastest first. ``cost(step, program, result on planes, target)`` estimates a step; "relayout" steps are asked for too."""
    known: dict[tuple[str, bool], float] = {}

    def total(made: Program, on_planes: Collection[str]) -> float:
        for step in made.steps:
            key = (step.output, step.output in on_planes)
            if key not in known:
                known[key] = cost(step, made, key[1], target)
        return sum(known[step.output, step.output in on_planes] for step in made.steps)

    candidates = _candidates(program, target)
    if not candidates:
        return [(0.0, ())]  # nothing to compare
    sets = [chosen for size in range(len(candidates) + 1) for chosen in combinations(candidates, size)]
    return sorted(((total(*_rewritten(program, chosen, target)), chosen) for chosen in sets), key=lambda found: found[0])


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
    if step.output in program.views or any(name in program.views for name in step.inputs):
        return False  # shared buffers are pixel-major
    out = program.values[step.output].shape
    if step.op == "input":
        return out[2:] != (1, 1)
    return any(rule.fits(step, program.values[step.inputs[0]].shape, out, target) for rule in RULES.get(step.op, ()))


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

    def folded(name: str) -> str:
        twin = f"{name}:folded"
        if twin not in values:
            values[twin] = Value(twin, space_to_depth.shape(values[name].shape))
            steps.append(Step(twin, "space_to_depth", (name,), twin))
            on_planes.add(twin)
        return twin

    for step in program.steps:
        name, ins = step.output, step.inputs
        if step.op == "output":  # reads either
            steps.append(step)
            continue
        run = can(step, program, target) and resolution(program, name if step.op == "input" else ins[0]) in chosen
        if step.op != "input":
            reads_either = step.op == "conv" and not run
            ins = tuple(x if i == 0 and reads_either else wanted(x, run) for i, x in enumerate(ins))
            if run and step.op == "conv" and step.attrs["stride"] == (2, 2):
                step, ins = replace(step, attrs={**step.attrs, "folded": True}), (folded(ins[0]), *ins[1:])
        steps.append(replace(step, inputs=ins))
        if run and values[name].shape[2:] != (1, 1):
            on_planes.add(name)
    return replace(program, steps=tuple(steps), values=values), on_planes


def _fold_input(program: Program, on_planes: set[str]) -> tuple[Program, set[str]]:
    """The same, but images that come in only to be folded are folded on their way in (``attrs["folded"]``: their rows and columns)."""
    steps, gone = list(program.steps), set()
    for index, step in enumerate(program.steps):
        readers = program.readers.get(step.output, ())
        if step.op == "input" and len(readers) == 1 and readers[0].op == "space_to_depth":
            steps[index] = replace(step, output=readers[0].output, attrs={**step.attrs, "folded": resolution(program, step.output)})
            gone.add(step.output)
    kept = tuple(step for step in steps if step.op != "space_to_depth" or step.inputs[0] not in gone)
    return replace(program, steps=kept, values={name: value for name, value in program.values.items() if name not in gone}), on_planes - gone


def _geometry(program: Program, on_planes: Collection[str], threads: int, target: Target) -> dict[str, Layout]:
    """The Layouts of planes: one frame for each resolution, as wide as the widest reader needs, and one division among ``threads`` threads."""
    pads: dict[Resolution, int] = {}
    halos: dict[Resolution, int] = {}  # of resolutions with a depthwise layer, the rows that one reads beyond its own
    for step in program.steps:
        if step.op in ("conv", "depthwise") and step.inputs[0] in on_planes:
            here = resolution(program, step.inputs[0])
            pads[here] = max(pads.get(here, 0), *frame(step, program.values[step.inputs[0]], program.values[step.output]))
        if step.op == "depthwise":
            assert step.weight is not None
            for here in (resolution(program, step.inputs[0]), resolution(program, step.output)):
                halos[here] = max(halos.get(here, 0), step.weight.shape[2] - 1)

    def layout(name: str) -> Layout:
        here = resolution(program, name)
        halo = halos.get(here, 0)
        made = planar.layout(program.values[name].shape, pads.get(here, 0), planar.wider(halo, target))
        return replace(made, parts=planar.parts(made, halo, threads))

    return {name: layout(name) for name in on_planes}
