"""Matrix products of few pixels (classifiers, gates): one pixel and a few filters for each group of work items, which share the positions and add up what each of them found.

With one work item for a filter, as in conv.py, most of a GPU would idle, and neighbours would read weights that lie far apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import Group, pack
from stages.compiler.opencl.kernels import conv
from stages.compiler.opencl.walk import LOCAL, Types, Walk, types, walk

PIXELS = 4  # output pixels up to which this pays: beyond, the weights would be read too often
GROUP = 4  # filters of a group of work items


@dataclass(frozen=True)
class Spec:
    """All that the code depends on."""

    walk: Walk
    filters: int
    epilogue: Epilogue
    types: Types


def build(placed: Placed, storage: str) -> tuple[Kernel, ...]:
    """The kernel of a "conv" step with few output pixels and no frame around them, nothing for any other."""
    step, out = placed.step, placed.output
    if step.op != "conv" or prod(out.shape) // out.shape[1] > PIXELS or any(out.border):
        return ()
    assert step.weight is not None and step.bias is not None
    weight = step.weight.reshape(len(step.weight), -1)
    groups = -(-len(weight) // GROUP)
    if weight.all():
        data, kept = _whole(weight, step.bias, conv.offsets(placed)), weight.size
    else:
        data, kept = pack(weight, step.bias, (Group(0, groups, GROUP, 1),), conv.offsets(placed))
    data = conv.stored(data, storage)
    over = walk(placed, step.attrs["stride"]).single()
    spec = Spec(over, len(weight), step.epilogue, types(placed, storage, data))
    reason = f"{step.scheme.label}: groups of {GROUP} filters, {kept} of {weight.size} weights, positions listed and divided among {LOCAL} work items"
    macs = kept * prod(out.shape) // out.shape[1]
    return (Kernel("matvec", spec, step, data, f"1x{GROUP}", macs, reason, prod(over.items(groups)) * LOCAL),)


def _whole(weight: np.ndarray, bias: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Packed arrays where nothing is pruned: all groups share one list of positions."""
    groups, positions = -(-len(weight) // GROUP), weight.shape[1]
    ptr = np.stack([np.zeros(groups), np.full(groups, positions), np.arange(groups) * positions * GROUP], 1)
    return conv.whole(weight, bias, GROUP) | {"ptr": ptr.ravel().astype(np.int32), "idx": offsets}


def emit(spec: Spec, name: str) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.opencl import code, together

    T, over = code.T, spec.walk

    def body(o: Any, local: Any, n: Any, g: Any, row: Any, col: Any) -> None:
        corner = T.Bind(code.at(over.x, n, 0, row, col))
        entry, count, first = (T.Bind(o.ptr.load(g * 3 + k)) for k in range(3))
        sums = code.accumulators(GROUP, 1)
        for f in range(GROUP):
            T.buffer_store(sums, T.float32(0), [f])
        with T.serial(0, together.rounds(count)) as turn:
            k = T.Bind(turn * LOCAL + local)
            with T.If(k < count), T.Then():
                value = T.Bind(o.x.load(corner + o.idx.load(entry + k)))
                for f in range(GROUP):
                    T.buffer_store(sums, sums[f] + value * o.w.load(first + k * GROUP + f), [f])
        found = together.added_up(sums, GROUP, local)
        channel = T.Bind(g * GROUP + local)
        with T.If(code.tirx.all(local < GROUP, channel < spec.filters)), T.Then():
            code.finish(o, found[local * LOCAL] + o.b.load(channel), spec.epilogue, over, (n, channel, row, col), 1)

    return together.function(name, spec.types, over.items(-(-spec.filters // GROUP)), body)
