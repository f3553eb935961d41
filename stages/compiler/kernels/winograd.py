"""Dense 3x3 convolutions with stride 1 by Winograd's method F(m x n, 3 x 3) with m, n from 2 to 6: 2.25 to 5 times fewer multiplications than the direct sum.

A block of tiles (m x n results each, (m + 2)(n + 2) inputs) at a time: transformed inputs V and products Q stay in the thread's scratch memory, small enough for the second-level cache.
For each of the (m + 2)(n + 2) places t of the transform domain a matrix product Q[t] = V[t] U[t]; U, the transformed weights, is made in double precision at compile time.
Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.

Scratch: V[t][block of ``lanes`` input channels][tile][lane], Q[t][vector of filters][tile][lane], constants. Weights: U[block of filters][t][input channel][filter of the block].
Rounding (512 random inputs, outputs of rms 1, against float64), largest / rms: F(2x2) 5e-6 / 7e-7, F(4x2) 2e-5 / 2e-6, F(4x4) 1e-4 / 4e-6, F(5x5) and F(6x6) 2e-4 / 8e-6; the direct
sum 2e-5 / 1e-6. 64 inputs have a third of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, View
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import split
from stages.compiler.kernels.winograd_cost import PREFERENCE, choose, direct, estimate, options
from stages.compiler.kernels.winograd_shape import Blocking, Shape, panel
from stages.compiler.kernels.winograd_transforms import TAPS, weight_transform
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x`` is the view of the input, its origin moved by the padding."""

    shape: Shape
    x: View
    out: Layout
    extras: tuple[View, ...]
    epilogue: Epilogue


@dataclass(frozen=True)
class Choice(Blocking):
    """What is tuned."""

    @property
    def handicap(self) -> float:
        """By how much it must win: larger tiles cost precision."""
        return PREFERENCE[self.m]


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a 3x3 "conv" step with stride 1 where Winograd is expected to be faster than the gather kernel, which saves what the mask leaves out; None for any other."""
    step = placed.step
    if not _takes(placed) or step.weight is None:
        return None
    n, _, h, w = placed.output.shape
    cost, shape = choose((n, h, w), step.weight.shape[1], step.weight.shape[0], target)
    kept = direct(step.weight, (n, h, w), target)
    if cost >= kept:
        return None
    name = label(shape)
    if np.count_nonzero(step.weight) == step.weight.size:
        return kernel(placed, shape, f"{scheme.label}: Winograd {name}, expected to be {kept / cost:.1f}x as fast as the direct sum")
    dense = direct(np.ones_like(step.weight), (n, h, w), target)
    saved = f"the mask saves less ({dense / kept:.1f}x) than Winograd does ({dense / cost:.1f}x)"
    return kernel(placed, shape, f"{scheme.label}: runs dense by Winograd {name}, since {saved}")


def choices(placed: Placed, target: Target) -> list[tuple[float, Choice]]:
    """(estimated cycles with the handicap, Choice) of all ways to run ``placed``, none where Winograd can't."""
    if not _takes(placed) or placed.step.weight is None:
        return []
    (n, filters, h, w), channels = placed.output.shape, placed.step.weight.shape[1]
    found = {_choice(shape): estimate(shape, target) for shape in options((n, h, w), channels, filters, target)}
    return [(cost * choice.handicap, choice) for choice, cost in found.items()]


def chosen(placed: Placed, scheme: LayerScheme, target: Target, choice: Choice) -> Kernel:
    """The kernel with one of ``choices``."""
    assert placed.step.weight is not None
    (n, filters, h, w), channels = placed.output.shape, placed.step.weight.shape[1]
    shape = Shape((n, h, w), channels, filters, Blocking(choice.rows, choice.cols, choice.tiles, choice.lanes, choice.vectors))
    return kernel(placed, shape, f"{scheme.label}: Winograd {label(shape)}, measured to be the fastest")


def _takes(placed: Placed) -> bool:
    """Whether ``placed`` is a convolution that Winograd's method can compute."""
    step = placed.step
    if step.op != "conv" or step.weight is None or step.weight.shape[2:] != (TAPS, TAPS) or placed.inputs[0].planar or placed.output.planar:
        return False
    return bool(step.attrs["stride"] == (1, 1) and step.attrs["dilation"] == (1, 1))


def _choice(shape: Shape) -> Choice:
    """Of blocks that are larger than the image, the one that just covers it stands for all."""
    b = shape.blocking
    return Choice(b.rows, b.cols, min(b.tiles, shape.tiles), b.lanes, b.vectors)


def label(shape: Shape) -> str:
    """E.g. "F(4x4)"."""
    return f"F({shape.blocking.m[0]}x{shape.blocking.m[1]})"


def kernel(placed: Placed, shape: Shape, reason: str) -> Kernel:
    """The kernel that is divided as ``shape`` says."""
    step, source, out = placed.step, placed.inputs[0], placed.output
    assert step.weight is not None and step.bias is not None
    padding = step.attrs["padding"]
    origin = source.origin - padding[0] * source.row - padding[1] * source.pitch
    spec = Spec(shape, (origin, source.image, source.row, source.pitch), out, placed.extras, step.epilogue)
    tile = f"{label(shape)} {shape.most} tiles x {shape.wide} channels"
    macs = step.weight.size * out.shape[0] * out.shape[2] * out.shape[3]
    return Kernel("winograd", spec, step, pack(step.weight, step.bias, shape), tile, macs, reason, shape.units, shape.scratch, _choice(shape))


def pack(weight: np.ndarray, bias: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """The arrays w and b: transformed weights in the order in which the products read them, filters filled up with zeros."""
    blocks, wide = shape.filter_blocks, shape.wide
    padded = np.zeros((blocks * wide, shape.channels * TAPS * TAPS), np.float32)
    padded[: shape.filters] = weight.reshape(shape.filters, -1)
    taps = padded.reshape(blocks, wide, shape.channels, TAPS * TAPS).transpose(0, 3, 2, 1)
    matrix = weight_transform(shape.blocking.m)
    packed = np.empty((blocks, shape.places, shape.channels * wide), np.float32)
    for block in range(blocks):
        packed[block] = matrix @ taps[block].reshape(TAPS * TAPS, -1).astype(np.float64)
    shift = np.zeros(blocks * wide, np.float32)
    shift[: shape.filters] = bias
    return {"w": packed.ravel(), "b": shift}


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir, winograd_tiles

    T = tir.T

    def body(o: Any) -> None:
        shape = spec.shape
        tir.zero_frame(o, spec.out, target.narrow)
        winograd_tiles.store_constants(o, shape)
        with T.serial(o.lo, o.hi) as unit:
            block = T.Bind(tir.tirx.truncdiv(unit, shape.filter_blocks))
            filters = T.Bind(tir.tirx.truncmod(unit, shape.filter_blocks))
            (size, _, longer), *shorter = shape.tile_blocks
            count = T.Bind(tir.tirx.Select(block < longer, size, shorter[0][0])) if shorter else size
            first = T.Bind(block * size - (tir.tirx.max(block - longer, 0) if shorter else 0))
            with T.If(tir.tirx.Or(unit == o.lo, filters == 0)), T.Then(), T.serial(0, count) as i:
                winograd_tiles.transform_input(o, shape, spec.x, first + i, i, target)
            if shorter:
                with T.If(block < longer):
                    with T.Then():
                        _multiply(o, shape, filters, size, target)
                    with T.Else():
                        _multiply(o, shape, filters, shorter[0][0], target)
            else:
                _multiply(o, shape, filters, size, target)
            with T.serial(0, count) as i:
                winograd_tiles.transform_output(o, shape, (spec.out.view, spec.extras, spec.epilogue), filters, first + i, i, target)

    return tir.function(name, body)


def _multiply(o: Any, shape: Shape, filters: Any, tiles: int, target: Target) -> None:
    """Q[t] = V[t] U[t] for all places, ``tiles`` tiles and one block of filters."""
    from stages.compiler.kernels import tir

    T = tir.T
    lanes = shape.blocking.lanes
    with T.serial(0, shape.places) as t:
        u = T.Bind((filters * shape.places + t) * (shape.channels * shape.wide))
        for size, first, count in split(tiles, panel(shape.blocking.vectors, target)):
            with T.serial(0, count) as p:
                tile = T.Bind(p * size + first)
                v = T.Bind(t * shape.v_pitch + tile * lanes)
                q = T.Bind(shape.q + t * shape.q_pitch + tile * lanes)
                _micro(o, shape, size, v, u, q, shape.streamed and not target.issue)


def _micro(o: Any, shape: Shape, size: int, v: Any, u: Any, q: Any, ahead: bool) -> None:
    """``size`` tiles times one block of filters, all input channels; the sums stay in registers. ``ahead``: weights are asked for before their use."""
    from stages.compiler.kernels import tir

    T = tir.T
    lanes, vectors = shape.blocking.lanes, shape.blocking.vectors
    sums = T.alloc_buffer((size * vectors * lanes,), "float32", scope="local")

    def slot(p: int, f: int) -> Any:
        return tir.at((p * vectors + f) * lanes, lanes)

    for p in range(size):
        for f in range(vectors):
            T.buffer_store(sums, tir.splat(0, lanes), [slot(p, f)])

    with T.serial(0, shape.channels) as k:  # one loop: of two, LLVM unrolls the outer one where it is short, and spills
        block = tir.tirx.truncdiv(k, lanes)
        source = T.Bind(v + block * (shape.most * lanes) + tir.tirx.truncmod(k, lanes))
        row = T.Bind(u + k * (vectors * lanes))
        if ahead:
            tir.fetch_ahead(o.w, row, vectors * lanes)
        loaded = [T.Bind(o.w[tir.at(row + f * lanes, lanes)]) for f in range(vectors)]
        for p in range(size):
            value = T.Bind(T.broadcast(o.s[source + p * lanes], lanes))
            for f in range(vectors):
                T.buffer_store(sums, sums[slot(p, f)] + value * loaded[f], [slot(p, f)])
    for p in range(size):
        for f in range(vectors):
            tir.store(o.s, q + (f * shape.most + p) * lanes, sums[slot(p, f)], lanes)
