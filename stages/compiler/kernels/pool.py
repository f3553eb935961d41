"""Pooling of every kind: max, average, adaptive and global, as windows that are already clipped to the image; runs of equal windows become loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Epilogue, Layout, View
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

UNROLLED = 16  # pixels of a window up to which it is written out
Window = tuple[int, int, int]  # first row, row behind the last, what it counts for in the divisor
Run = tuple[int, int, int, int, int, int]  # first output, outputs, first input, step, size, divisor


@dataclass(frozen=True)
class Spec:
    """All that the code depends on."""

    kind: str
    rows: tuple[Run, ...]
    cols: tuple[Run, ...]
    x: View
    out: Layout
    extras: tuple[View, ...]
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "pool" step, None for any other."""
    step = placed.step
    if step.op != "pool":
        return None
    rows, cols = runs(step.attrs["rows"]), runs(step.attrs["cols"])
    spec = Spec(step.attrs["kind"], rows, cols, placed.inputs[0].view, placed.output, placed.extras, step.epilogue)
    return Kernel("pool", spec, step, {}, "", 0, f"{step.attrs['kind']} pooling", units(d for d, *_ in _nests(spec, target)))


def runs(windows: Sequence[Window]) -> tuple[Run, ...]:
    """Consecutive windows of one size, one divisor and one step. [(0, 2, 2), (1, 4, 3), (3, 6, 3)] -> ((0, 1, 0, 0, 2, 2), (1, 2, 1, 2, 3, 3))."""
    found: list[Run] = []
    for index, (start, stop, divisor) in enumerate(windows):
        if found:
            first, count, begin, step, size, d = found[-1]
            follows = count == 1 or start == begin + count * step
            if (size, d) == (stop - start, divisor) and follows:
                found[-1] = (first, count + 1, begin, start - begin if count == 1 else step, size, d)
                continue
        found.append((index, 1, start, 0, stop - start, divisor))
    return tuple(found)


def _nests(spec: Spec, target: Target) -> list[tuple[tuple[int, ...], Run, Run, tuple[int, int, int, int]]]:
    """(loops, rows, columns, block of channels) of each nest of loops."""
    blocks = channel_blocks(spec.out.width, target.narrow, 4)
    return [((spec.out.shape[0], rows[1], cols[1], block[1]), rows, cols, block) for rows in spec.rows for cols in spec.cols for block in blocks]


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T = tir.T

    def body(o: Any) -> None:
        nests = _nests(spec, target)
        tir.zero_frame(o, spec.out, target.narrow)
        for dims, rows, cols, (first, _, lanes, vectors) in nests:

            def window(
                n: Any, i: Any, j: Any, block: Any, rows: Run = rows, cols: Run = cols, first: int = first, lanes: int = lanes, vectors: int = vectors
            ) -> None:
                _window(o, spec, rows, cols, (n, i, j), T.Bind(block * (lanes * vectors) + first), lanes, vectors)

            tir.nest(o, units(d for d, *_ in nests), dims, window)

    return tir.function(name, body)


def _window(o: Any, spec: Spec, rows: Run, cols: Run, output: tuple[Any, Any, Any], channel: Any, lanes: int, vectors: int) -> None:
    """One output pixel of one block of channels."""
    from stages.compiler.kernels import epilogue, tir

    T, (n, i, j), highest = tir.T, output, spec.kind == "max"
    origin, image, row, pixel = spec.x
    corner = T.Bind(n * image + i * (rows[3] * row) + j * (cols[3] * pixel) + (origin + rows[2] * row + cols[2] * pixel) + channel)
    acc = T.alloc_buffer((vectors * lanes,), "float32", scope="local")
    for v in range(vectors):
        tir.store(acc, v * lanes, tir.splat(-3.4028234e38 if highest else 0.0, lanes), lanes)

    def take(offset: Any) -> None:
        for v in range(vectors):
            slot = tir.at(v * lanes, lanes)
            value = o.x[tir.at(corner + offset + v * lanes, lanes)]
            T.buffer_store(acc, tir.tirx.max(acc[slot], value) if highest else acc[slot] + value, [slot])

    if rows[4] * cols[4] <= UNROLLED:
        for y in range(rows[4]):
            for x in range(cols[4]):
                take(y * row + x * pixel)
    else:
        with T.serial(0, rows[4]) as y, T.serial(0, cols[4]) as x:
            take(y * row + x * pixel)
    for v in range(vectors):
        value = acc[tir.at(v * lanes, lanes)]
        mean = value if highest else value * tir.splat(1.0 / (rows[5] * cols[5]), lanes)
        place = epilogue.Place((n, i + rows[0], j + cols[0]), channel + v * lanes, lanes)
        epilogue.finish(o, mean, spec.epilogue, place, spec.out.view, spec.extras)
