"""What the best choice for a layer, or for the layout of a network, depends on: the keys of the tuning database. Imports numpy only."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from stages.compiler.ir import Layout, Program
from stages.compiler.kernels import matvec
from stages.compiler.kernels.kernel import Placed

WIDEST = 32  # filters: more that share their positions are as good


def signature(placed: Placed) -> str | None:
    """E.g. "conv 64>128 3x3 /2 @1x28x28 pitch 64>128 relu dense" (filters, kernel, stride, output, floats a pixel, epilogue, density); None for steps that nobody tunes.

    The density of a mask is how many filters share their kept positions, and the kept share in powers of two: "g8 1/4".
    """
    step, source, out = placed.step, placed.inputs[0] if placed.inputs else None, placed.output
    if step.op != "conv" or step.weight is None or step.attrs.get("split") or source is None or matvec.takes(placed):
        return None
    filters, channels, height, width = step.weight.shape
    stride, dilation = step.attrs["stride"], step.attrs["dilation"]
    n, _, rows, cols = out.shape
    shape = f"{channels}>{filters} {height}x{width}{_unless(stride, '/')}{_unless(dilation, 'd')} @{n}x{rows}x{cols}"
    operands = iter(placed.modes)
    items = [f"{item[0]}-{next(operands, 'full')}" if len(item) == 2 and item[0] in _BINARY else str(item[0]) for item in step.epilogue]
    return f"{step.op} {shape} pitch {_pitch(source)}>{_pitch(out)} {'+'.join(items) or 'plain'} {density(step.weight)}"


def network(program: Program) -> str:
    """A name that networks share whose operations, shapes and density classes are equal, e.g. "1x3x224x224 59d0b6f2a4c1": the input's shape and a digest of the rest."""
    rows = []
    for step in program.steps:
        shapes = [program.values[name].shape for name in (*step.inputs, step.output) if name in program.values]
        window = [step.attrs.get(key) for key in ("stride", "padding", "dilation")]
        single = shapes[-1][2:] == (1, 1)  # a pixel alone has no layout, and linear layers can be large
        weight = None if step.weight is None or single else (step.weight.shape, density(step.weight))
        rows.append((step.op, shapes, window, weight, [item[0] for item in step.epilogue]))
    sizes = "+".join("x".join(map(str, shape)) for _, shape in program.inputs)
    return f"{sizes} {hashlib.sha256(repr(rows).encode()).hexdigest()[:12]}"


_BINARY = ("add", "sub", "rsub", "mul", "div", "rdiv")


def _unless(pair: tuple[int, int], mark: str) -> str:
    if pair == (1, 1):
        return ""
    return f" {mark}{pair[0]}" if pair[0] == pair[1] else f" {mark}{pair[0]}x{pair[1]}"


def _pitch(layout: Layout) -> str:
    return "planar" if layout.planar else str(layout.pitch)


def density(weight: np.ndarray) -> str:
    """The density class of a weight (filters first): "dense", or "g8 1/4": groups of 8 filters share their positions, and about a quarter of the weights is kept."""
    kept = weight.reshape(len(weight), -1) != 0
    share = np.count_nonzero(kept) / kept.size
    if share > math.sqrt(0.5):
        return "dense"
    return f"g{shared_by(kept)} 1/{2 ** round(-math.log2(max(share, 2**-10)))}"


def shared_by(kept: np.ndarray) -> int:
    """How many consecutive filters, a power of two up to WIDEST, keep the same positions of ``kept`` (filters, positions); the last filters may be fewer."""
    size = 1
    while 2 * size <= WIDEST and len(kept) > 1:
        pairs = kept[: len(kept) // 2 * 2].reshape(len(kept) // 2, 2, -1)
        if not np.array_equal(pairs[:, 0], pairs[:, 1]):
            break
        kept, size = pairs[:, 0], 2 * size
    return size
