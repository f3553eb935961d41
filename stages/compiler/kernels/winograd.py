"""Dense 3x3 convolutions with stride 1 by Winograd's method F(m x m, 3 x 3), m = 2, 4 or 6: 2.25 to 5 times fewer multiplications than the direct sum.

A block of tiles (m x m results each, (m + 2)^2 inputs) at a time: transformed inputs V and products Q stay in the thread's scratch memory, small enough for the second-level cache.
For each of the (m + 2)^2 places t of the transform domain a matrix product Q[t] = V[t] U[t]; U, the transformed weights, is made in double precision at compile time.
Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.

Scratch: V[t][block of ``lanes`` input channels][tile][lane], then Q[t][vector of filters][tile][lane]. Weights: U[block of filters][t][group][input channel][filter of the group].
Rounding (random inputs, outputs of rms 1, against float64), largest / rms: F(2x2) 5e-6 / 5e-7, F(4x4) 1e-4 / 3e-6, F(6x6) 1.5e-4 / 7e-6; the direct sum 1e-5 / 8e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, View, round_up
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import split
from stages.compiler.kernels.winograd_cost import choose, direct
from stages.compiler.kernels.winograd_shape import Shape, panel
from stages.compiler.kernels.winograd_transforms import TAPS, input_transform, output_transform, weights
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


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a 3x3 "conv" step with stride 1 where Winograd is expected to be faster than the gather kernel, which saves what the mask leaves out; None for any other."""
    step, source, out = placed.step, placed.inputs[0], placed.output
    if step.op != "conv" or step.weight is None or step.weight.shape[2:] != (TAPS, TAPS) or source.planar:
        return None
    if step.attrs["stride"] != (1, 1) or step.attrs["dilation"] != (1, 1):
        return None
    n, _, h, w = out.shape
    cost, shape = choose((n, h, w), step.weight.shape[1], step.weight.shape[0], target)
    kept = direct(step.weight, (n, h, w), target)
    if cost >= kept:
        return None
    dense = direct(np.ones_like(step.weight), (n, h, w), target)
    m, gain = shape.blocking.m, dense / cost
    if np.count_nonzero(step.weight) == step.weight.size:
        reason = f"{scheme.label}: Winograd F({m}x{m}), expected to be {gain:.1f}x as fast as the direct sum"
    else:
        reason = f"{scheme.label}: runs dense by Winograd F({m}x{m}), since the mask saves less ({dense / kept:.1f}x) than Winograd does ({gain:.1f}x)"
    return kernel(placed, shape, reason)


def kernel(placed: Placed, shape: Shape, reason: str) -> Kernel:
    """The kernel that is divided as ``shape`` says."""
    step, source, out = placed.step, placed.inputs[0], placed.output
    assert step.weight is not None and step.bias is not None
    padding = step.attrs["padding"]
    origin = source.origin - padding[0] * source.row - padding[1] * source.pitch
    further = tuple(e.view if mode == "full" else (0, e.image, 0, 0) for e, mode in zip(placed.inputs[1:], placed.modes, strict=True))
    spec = Spec(shape, (origin, source.image, source.row, source.pitch), out, further, step.epilogue)
    tile = f"F({shape.blocking.m}x{shape.blocking.m}) {shape.most} tiles x {shape.wide} channels"
    macs = step.weight.size * out.shape[0] * out.shape[2] * out.shape[3]
    return Kernel("winograd", spec, step, pack(step.weight, step.bias, shape), tile, macs, reason, shape.units, shape.scratch)


def pack(weight: np.ndarray, bias: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """The arrays w and b: transformed weights in the order in which the products read them, filters filled up with zeros."""
    b = shape.blocking
    padded = np.zeros((shape.filter_blocks * shape.wide, shape.channels, TAPS, TAPS), np.float32)
    padded[: shape.filters] = weight
    u = weights(padded, b.m).astype(np.float32).reshape(shape.places, shape.filter_blocks, b.groups, shape.group, shape.channels)
    shift = np.zeros(shape.filter_blocks * shape.wide, np.float32)
    shift[: shape.filters] = bias
    return {"w": np.ascontiguousarray(u.transpose(1, 0, 2, 4, 3)).ravel(), "b": shift}


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T = tir.T

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)
        with T.serial(o.lo, o.hi) as unit:
            block = T.Bind(tir.tirx.truncdiv(unit, spec.shape.filter_blocks))
            filters = T.Bind(tir.tirx.truncmod(unit, spec.shape.filter_blocks))
            (size, _, longer), *rest = spec.shape.tile_blocks
            tiles = T.Bind(tir.tirx.Select(block < longer, size, rest[0][0])) if rest else size
            first = T.Bind(block * size - (tir.tirx.max(block - longer, 0) if rest else 0))
            with T.If(tir.tirx.Or(unit == o.lo, filters == 0)), T.Then(), T.serial(0, tiles) as i:
                _transform_input(o, spec, first + i, i, target)
            for count, _, _ in spec.shape.tile_blocks:
                if rest:
                    with T.If(tiles == count), T.Then():
                        _multiply(o, spec, filters, count, target)
                else:
                    _multiply(o, spec, filters, count, target)
            with T.serial(0, tiles) as i:
                _transform_output(o, spec, filters, first + i, i, target)

    return tir.function(name, body)


def _combine(terms: Sequence[tuple[float, Any]]) -> Any:
    """A sum of coefficient times vector as TIR; None stands for a vector of zeros."""
    from stages.compiler.kernels import tir

    T = tir.T
    result = None
    for factor, value in sorted((t for t in terms if t[1] is not None), key=lambda t: (abs(t[0]) != 1, t[0] < 0)):
        lanes = value.ty.lanes if hasattr(value.ty, "lanes") else 1
        term = value if abs(factor) == 1 else value * tir.splat(abs(factor), lanes)
        if result is None:
            result = term if factor > 0 else tir.splat(0, lanes) - term
        else:
            result = result + term if factor > 0 else result - term
    return None if result is None else T.Bind(result)


def _corner(spec: Spec, tile: Any) -> tuple[Any, Any, Any]:
    """(image, row, column) of a tile in the grid of tiles."""
    from stages.compiler.kernels import tir

    T = tir.T
    _, rows, cols = spec.shape.grid
    line = T.Bind(tir.tirx.truncdiv(tile, cols))
    return T.Bind(tir.tirx.truncdiv(line, rows)), T.Bind(tir.tirx.truncmod(line, rows)), T.Bind(tir.tirx.truncmod(tile, cols))


def _at_edges(spec: Spec, row: Any, col: Any, body: Callable[[int, int], None]) -> None:
    """``body(results of the tile in height, in width)``: code of its own for tiles that stick out beyond the last row or column."""
    from stages.compiler.kernels import tir

    T = tir.T
    m = spec.shape.blocking.m

    def along(axis: int, index: Any, then: Callable[[int], None]) -> None:
        tiles, left = spec.shape.grid[axis], spec.shape.dims[axis] - (spec.shape.grid[axis] - 1) * m
        if left == m or tiles == 1:
            then(left)
            return
        with T.If(index == tiles - 1):
            with T.Then():
                then(left)
            with T.Else():
                then(m)

    along(1, row, lambda height: along(2, col, lambda width: body(height, width)))


def _transform_input(o: Any, spec: Spec, tile: Any, i: Any, target: Target) -> None:
    """V of one tile, all channels. What lies beyond the frame counts as zero."""
    from stages.compiler.kernels import tir

    T = tir.T
    m, lanes = spec.shape.blocking.m, spec.shape.blocking.lanes
    image, row, col = _corner(spec, tile)
    source = T.Bind(spec.x[0] + image * spec.x[1] + row * (m * spec.x[2]) + col * (m * spec.x[3]))
    quantum = target.narrow[-1]

    def vector(height: int, width: int, channel: Any, v: Any, width_: int) -> None:
        def load(y: int, x: int) -> Any:
            return T.Bind(o.x[tir.at(source + channel + (y * spec.x[2] + x * spec.x[3]), width_)]) if y < height and x < width else None

        size = m + 2
        columns = [input_transform(m, [load(y, x) for y in range(size)], _combine) for x in range(size)]
        for y in range(size):
            for x, value in enumerate(input_transform(m, [columns[x][y] for x in range(size)], _combine)):
                tir.store(o.s, v + (y * size + x) * spec.shape.v_pitch, tir.splat(0, width_) if value is None else value, width_)

    def everything(height: int, width: int) -> None:
        whole, rest = divmod(round_up(spec.shape.channels, quantum), lanes)
        if whole:
            with T.serial(0, whole) as c:
                vector(height + TAPS - 1, width + TAPS - 1, c * lanes, (c * spec.shape.most + i) * lanes, lanes)
        for start, width_ in tir.widths(rest, target.narrow):
            vector(height + TAPS - 1, width + TAPS - 1, whole * lanes + start, (whole * spec.shape.most + i) * lanes + start, width_)

    _at_edges(spec, row, col, everything)


def _multiply(o: Any, spec: Spec, filters: Any, tiles: int, target: Target) -> None:
    """Q[t] = V[t] U[t] for all places, ``tiles`` tiles and one block of filters."""
    from stages.compiler.kernels import tir

    T = tir.T
    b = spec.shape.blocking
    with T.serial(0, spec.shape.places) as t, T.serial(0, b.groups) as g:
        u = T.Bind(((filters * spec.shape.places + t) * b.groups + g) * (spec.shape.channels * spec.shape.group))
        for size, first, count in split(tiles, panel(b.vectors, target)):
            with T.serial(0, count) as p:
                tile = T.Bind(p * size + first)
                v = T.Bind(t * spec.shape.v_pitch + tile * b.lanes)
                q = T.Bind(spec.shape.places * spec.shape.v_pitch + t * spec.shape.q_pitch + (g * (b.vectors * spec.shape.most) + tile) * b.lanes)
                _micro(o, spec, size, v, u, q)


def _micro(o: Any, spec: Spec, size: int, v: Any, u: Any, q: Any) -> None:
    """``size`` tiles times one group of filters, all input channels; the sums stay in registers."""
    from stages.compiler.kernels import tir

    T = tir.T
    lanes, vectors = spec.shape.blocking.lanes, spec.shape.blocking.vectors
    sums = T.alloc_buffer((size * vectors * lanes,), "float32", scope="local")

    def slot(p: int, f: int) -> Any:
        return tir.at((p * vectors + f) * lanes, lanes)

    for p in range(size):
        for f in range(vectors):
            T.buffer_store(sums, tir.splat(0, lanes), [slot(p, f)])

    def channel(block: Any, k: Any) -> None:
        row = T.Bind(u + (block * lanes + k) * (vectors * lanes))
        loaded = [T.Bind(o.w[tir.at(row + f * lanes, lanes)]) for f in range(vectors)]
        for p in range(size):
            value = T.Bind(T.broadcast(o.s[v + block * (spec.shape.most * lanes) + (p * lanes + k)], lanes))
            for f in range(vectors):
                T.buffer_store(sums, sums[slot(p, f)] + value * loaded[f], [slot(p, f)])

    whole, rest = divmod(spec.shape.channels, lanes)
    if whole:
        with T.serial(0, whole) as block, T.serial(0, lanes) as k:
            channel(block, k)
    if rest:
        with T.serial(0, rest) as k:
            channel(whole, k)
    for p in range(size):
        for f in range(vectors):
            tir.store(o.s, q + (f * spec.shape.most + p) * lanes, sums[slot(p, f)], lanes)


def _transform_output(o: Any, spec: Spec, filters: Any, tile: Any, i: Any, target: Target) -> None:
    """The results of one tile, one block of filters: bias, epilogue, store."""
    from stages.compiler.kernels import epilogue, tir

    T = tir.T
    m, lanes = spec.shape.blocking.m, spec.shape.blocking.lanes
    image, row, col = _corner(spec, tile)
    late = epilogue.costly(spec.epilogue)

    def vector(height: int, width: int, channel: Any, q: Any, width_: int) -> None:
        size = m + 2

        def load(y: int, x: int) -> Any:
            return T.Bind(o.s[tir.at(q + (y * size + x) * spec.shape.q_pitch, width_)])

        def place(y: Any, x: Any) -> Any:
            return epilogue.Place((image, row * m + y, col * m + x), channel, width_)

        columns = [output_transform(m, [load(y, x) for y in range(size)], _combine) for x in range(size)]
        bias = T.Bind(o.b[tir.at(channel, width_)])
        for y in range(height):
            for x, value in enumerate(output_transform(m, [columns[x][y] for x in range(size)], _combine)[:width]):
                epilogue.finish(o, value + bias, () if late else spec.epilogue, place(y, x), spec.out.view, spec.extras)
        if late:  # the results are still in the first-level cache
            with T.serial(0, height) as y, T.serial(0, width) as x:
                epilogue.finish(o, o.y[place(y, x).index(spec.out.view)], spec.epilogue, place(y, x), spec.out.view, spec.extras)

    def everything(height: int, width: int) -> None:
        q = T.Bind(spec.shape.places * spec.shape.v_pitch + i * lanes)
        whole, rest = divmod(round_up(spec.shape.filters, target.narrow[-1]), lanes)
        vectors = spec.shape.wide // lanes
        ragged = whole % vectors or rest
        here = T.Bind(tir.tirx.min(whole - filters * vectors, vectors)) if ragged else vectors
        with T.serial(0, here) as c:
            vector(height, width, T.Bind((filters * vectors + c) * lanes), T.Bind(q + c * (spec.shape.most * lanes)), lanes)
        if rest:
            with T.If(filters == spec.shape.filter_blocks - 1), T.Then():
                at = q + whole % vectors * (spec.shape.most * lanes)
                for start, width_ in tir.widths(rest, target.narrow):
                    vector(height, width, T.int32(whole * lanes + start), T.Bind(at + start), width_)

    _at_edges(spec, row, col, everything)
