"""Dense 3x3 convolutions with stride 1 by Winograd's method F(m x n, 3 x 3) with m, n from 2 to 6: 2.25 to 5 times fewer multiplications than the direct sum.

A block of tiles (m x n results each, (m + 2)(n + 2) inputs) at a time: transformed inputs V and products Q stay in the thread's scratch memory, small enough for the second-level cache.
For each of the (m + 2)(n + 2) places t of the transform domain a matrix product Q[t] = V[t] U[t]. U, the transformed weights, is made in double precision at compile time; or, a chunk of input
channels at a time, at run time: U has 1.8 to 7 times as many floats as the weights, and where these come from beyond the second-level cache for a few tiles, reading takes longer than computing.
Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.

Scratch: V[block of ``lanes`` input channels][t][tile][lane], Q[t][vector of filters][tile][lane], U[block of input channels][t][input channel of the block][filter of the block] if made at run time,
constants. What a transform writes lies within a few pages: some processors know the addresses of 16 pages for stores.
Weights: U[blocks of a unit][t][block of filters][input channel][filter of the block], or as they are: [block of filters][input channel][9][filter of the block].
Rounding (512 random inputs, outputs of rms 1, against float64), largest / rms: F(2x2) 5e-6 / 7e-7, F(4x2) 2e-5 / 2e-6, F(4x4) 1e-4 / 4e-6, F(5x5) and F(6x6) 2e-4 / 8e-6; the direct
sum 2e-5 / 1e-6. 64 inputs have a third of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, Step, View
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import split
from stages.compiler.kernels.winograd_cost import PREFERENCE, choose, direct, estimate, options
from stages.compiler.kernels.winograd_shape import TOGETHER, Blocking, Shape, panel
from stages.compiler.kernels.winograd_transforms import TAPS, weight_transform
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x`` is the view of the input, its origin moved by the padding; ``pooled``: of each 2x2 results only the largest is stored."""

    shape: Shape
    x: View
    out: Layout
    extras: tuple[View, ...]
    epilogue: Epilogue
    pooled: bool = False


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


def pooled(alone: Kernel, step: Step, out: Layout) -> Kernel | None:
    """``alone``, a convolution, and the 2x2 max pooling of its result behind it in one: ``step``, whose result lies at ``out`` (pools.py). None unless it was made here with tiles of even sizes."""
    if alone.rule != "winograd" or any(size % 2 for size in alone.spec.shape.blocking.m) or out.planar:
        return None
    return replace(alone, spec=replace(alone.spec, out=out, pooled=True), step=step, reason=f"{alone.reason}; with the 2x2 max pooling behind it")


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
    shape = Shape((n, h, w), channels, filters, Blocking(**vars(choice)))
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
    return Choice(**vars(replace(b, tiles=min(b.tiles, shape.tiles), chunk=shape.chunk)))


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
    tile = f"{label(shape)} {shape.most} tiles x {f'{b}x' if (b := shape.blocking.beside) > 1 else ''}{shape.wide} channels{f', weights by {shape.chunk} inputs' if shape.chunk else ''}"
    macs = step.weight.size * out.shape[0] * out.shape[2] * out.shape[3]
    return Kernel("winograd", spec, step, pack(step.weight, step.bias, shape), tile, macs, reason, shape.units, shape.scratch, _choice(shape))


def pack(weight: np.ndarray, bias: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """The arrays w and b: weights in the order in which they are read, transformed unless that is done at run time; filters filled up with zeros."""
    blocks, wide = shape.filter_units * shape.blocking.beside, shape.wide
    padded = np.zeros((blocks * wide, shape.channels * TAPS * TAPS), np.float32)
    padded[: shape.filters] = weight.reshape(shape.filters, -1)
    taps = padded.reshape(blocks, wide, shape.channels, TAPS * TAPS)
    shift = np.zeros(blocks * wide, np.float32)
    shift[: shape.filters] = bias
    if shape.chunk:
        return {"w": taps.transpose(0, 2, 3, 1).ravel(), "b": shift}
    taps = taps.transpose(0, 3, 2, 1)
    matrix = weight_transform(shape.blocking.m)
    packed = np.empty((shape.filter_units, shape.places, shape.blocking.beside, shape.channels * wide), np.float32)
    for block in range(blocks):
        packed[block // shape.blocking.beside, :, block % shape.blocking.beside] = matrix @ taps[block].reshape(TAPS * TAPS, -1).astype(np.float64)
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
            block = T.Bind(tir.tirx.truncdiv(unit, shape.filter_units))
            filters = T.Bind(tir.tirx.truncmod(unit, shape.filter_units))
            (size, _, longer), *shorter = shape.tile_blocks
            count = T.Bind(tir.tirx.Select(block < longer, size, shorter[0][0])) if shorter else size
            first = T.Bind(block * size - (tir.tirx.max(block - longer, 0) if shorter else 0))
            with T.If(tir.tirx.Or(unit == o.lo, filters == 0)), T.Then(), T.serial(0, count) as i:
                winograd_tiles.transform_input(o, shape, spec.x, first + i, i, target)

            def products(channel: Any, channels: Any, begun: bool) -> None:
                if not shorter:
                    _multiply(o, shape, (filters, channel, channels, begun), size, target)
                    return
                with T.If(block < longer):
                    with T.Then():
                        _multiply(o, shape, (filters, channel, channels, begun), size, target)
                    with T.Else():
                        _multiply(o, shape, (filters, channel, channels, begun), shorter[0][0], target)

            if shape.chunk:
                _by_chunks(o, shape, filters, products, target)
            else:
                products(0, shape.channels, False)
            with T.serial(0, count) as i:
                winograd_tiles.transform_output(o, shape, spec, filters, first + i, i, target)

    return tir.function(name, body, multiplies=target)


def _by_chunks(o: Any, shape: Shape, filters: Any, products: Callable[[Any, Any, bool], None], target: Target) -> None:
    """All chunks of input channels, one after the other: their weights are transformed, their ``products(first channel, channels, whether there are sums to add to)`` computed."""
    from stages.compiler.kernels import tir, winograd_tiles

    T = tir.T
    several = shape.chunk < shape.channels
    if several:
        tir.fill(o.s, shape.q, shape.places * shape.q_pitch, 0.0, target.narrow)
    with T.serial(0, -(-shape.channels // shape.chunk)) as number:
        channel = T.Bind(number * shape.chunk)
        channels = T.Bind(tir.tirx.min(shape.chunk, shape.channels - channel)) if shape.channels % shape.chunk else shape.chunk
        with T.serial(0, channels) as k, T.serial(0, shape.blocking.vectors) as f:
            winograd_tiles.transform_weights(o, shape, filters * shape.channels + channel + k, k, f)
        products(channel, channels, several)


def _multiply(o: Any, shape: Shape, part: tuple[Any, Any, Any, bool], tiles: int, target: Target) -> None:
    """Q[t] = V[t] U[t] for all places, ``tiles`` tiles and ``part``: (the unit's number among those of its tiles, first input channel, input channels, whether Q[t] is added to)."""
    from stages.compiler.kernels import tir

    T = tir.T
    lanes, beside, (filters, channel, channels, begun) = shape.blocking.lanes, shape.blocking.beside, part
    with T.serial(0, shape.places) as t, T.serial(0, beside) as block:
        u = T.Bind(shape.u + t * shape.u_pitch if shape.chunk else ((filters * shape.places + t) * beside + block) * shape.u_pitch)
        following = (filters * shape.channels + channel + channels) * (TAPS * TAPS * shape.wide)  # the next chunk's weights, which may be the next block's
        chunks_ahead = (T.Bind(following + t * (shape.chunk * _pace(shape))), _pace(shape)) if shape.chunk and not target.issue else None
        for several, before, times in [(channels, 0, 1)] if shape.chunk else _parts(shape, target):
            with T.serial(0, times) as number:
                inputs = (T.Bind(before + number * several) if times > 1 else before, several, begun or before > 0)
                panels = split(tiles, panel(shape.blocking.vectors, target))
                pace = -(-shape.wide // sum(count for _, _, count in panels))
                for place, (size, first, count) in enumerate(panels):
                    with T.serial(0, count) as p:
                        tile = T.Bind(p * size + first)
                        v = T.Bind(t * shape.v_pitch + tile * lanes)
                        q = T.Bind(shape.q + t * shape.q_pitch + (block * (shape.blocking.vectors * shape.most) + tile) * lanes)
                        ahead = None if place else chunks_ahead
                        if not shape.chunk and target.reach.evenly:
                            passed = p + sum(n for _, _, n in panels[:place])
                            ahead = (T.Bind(u + (inputs[0] + several) * shape.wide + passed * (several * pace)), pace)  # weights are read in the order in which they lie
                        _micro(o, shape, size, (v, u, q), (channel if shape.chunk else 0, *inputs), ahead, target)


def _parts(shape: Shape, target: Target) -> list[tuple[int, int, int]]:
    """Input channels whose weights of a place are read for all panels before those of the next, as (channels, first channel, number of parts): what one panel has read is still in the first-level cache."""
    parts = -(-4 * shape.channels * shape.wide // target.reach.first)
    size = shape.channels // parts
    found = [(shape.channels - size * (parts - 1), 0, 1), (size, shape.channels - size * (parts - 1), parts - 1)]
    return [f for f in found if f[2]]


def _pace(shape: Shape) -> int:
    """Floats of the next chunk's weights that are asked for with each input channel of each place, so that they come while this chunk's products are computed."""
    return -(-TAPS * TAPS * shape.wide // shape.places)


def _micro(o: Any, shape: Shape, size: int, places: tuple[Any, Any, Any], part: tuple[Any, Any, Any, bool], ahead: tuple[Any, int] | None, target: Target) -> None:
    """``size`` tiles times one block of filters; the sums stay in registers. ``places``: first floats of V, U and Q; ``part``: (input channel that U begins with, first input channel from there, number of
    input channels, whether Q is added to); ``ahead``: (first float of what to ask for meanwhile, floats for each input channel)."""
    from stages.compiler.kernels import tir

    T = tir.T
    lanes, vectors = shape.blocking.lanes, shape.blocking.vectors
    (v, u, q), (origin, first, channels, begun) = places, part
    sums = T.alloc_buffer((size * vectors * lanes,), "float32", scope="local")
    weights = o.s if shape.chunk else o.w

    def slot(p: int, f: int) -> Any:
        return tir.at((p * vectors + f) * lanes, lanes)

    def product(p: int, f: int) -> Any:
        return q + (f * shape.most + p) * lanes

    for p in range(size):
        for f in range(vectors):
            T.buffer_store(sums, o.s[tir.at(product(p, f), lanes)] if begun else tir.splat(0, lanes), [slot(p, f)])

    with T.serial(0, channels) as k:  # one loop: of two, LLVM unrolls the outer one where it is short, and spills
        channel = first + k
        block = tir.tirx.truncdiv(origin + channel, lanes)
        source = T.Bind(v + block * shape.v_block + tir.tirx.truncmod(origin + channel, lanes))
        row = T.Bind(u + (tir.tirx.truncdiv(k, TOGETHER) * shape.u_block + tir.tirx.truncmod(k, TOGETHER) * shape.wide if shape.chunk else channel * shape.wide))
        if ahead is not None:
            tir.fetch_evenly(o.w, ahead[0], k, ahead[1])
        elif not shape.chunk and shape.weights <= target.reach.asked and not target.issue:
            tir.fetch_ahead(o.w, row, vectors * lanes)
        if not shape.chunk and target.reach.ahead:  # as many lines as channels cover those of a panel
            tir.fetch(o.s, v + (block + 2) * shape.v_block + tir.tirx.truncmod(channel, lanes) * lanes, tir.FIRST_LEVEL)
        loaded = [T.Bind(weights[tir.at(row + f * lanes, lanes)]) for f in range(vectors)]
        for p in range(size):
            value = T.Bind(T.broadcast(o.s[source + p * lanes], lanes))
            for f in range(vectors):
                T.buffer_store(sums, tir.multiply_add(sums[slot(p, f)], value, loaded[f], lanes, target, min(size, vectors)), [slot(p, f)])
    for p in range(size):
        for f in range(vectors):
            tir.store(o.s, product(p, f), sums[slot(p, f)], lanes)
