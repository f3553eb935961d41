"""Depthwise convolutions on planes: vectors along rows, a few rows of results at a time so that each loaded row serves all its windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, Shape, Step, costly
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import split, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

HELD = 25  # weights up to this many stay in registers
MOST_COLUMNS = 16  # vectors of a row that are written out; longer rows are looped over
NEAR = 24 * 1024  # bytes: a plane that stays in the first-level cache between its sums and their epilogue
_LATENCY = 4  # cycles from a multiply-add to the next on the same sum


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x``: (origin moved by the padding, floats from image to image, plane to plane, row to row) of the input."""

    x: tuple[int, int, int, int]
    out: Layout
    extras: tuple[planar.Operand, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    rows: int
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "depthwise" step from planes to planes, None for any other and for dilated ones."""
    step, source, out, a = placed.step, placed.inputs[0], placed.output, placed.step.attrs
    if step.op != "depthwise" or not planar.suits(placed) or not fits(step, source.shape, out.shape, target):
        return None
    assert step.weight is not None and step.bias is not None and max(a["padding"]) <= source.border[0]
    n, c, h, w = out.shape
    kh, kw = step.weight.shape[2:]
    origin = source.origin - a["padding"][0] * source.cols - a["padding"][1]
    rows = min(h // out.parts, rows_at_once((kh, kw), a["stride"], target))
    spec = Spec((origin, source.image, source.channel, source.cols), out, planar.operands(placed), (kh, kw), a["stride"], rows, step.epilogue)
    data = {"w": np.ascontiguousarray(step.weight.reshape(c, -1)).ravel(), "b": step.bias}
    macs = c * kh * kw * n * h * w
    return Kernel("planar_depthwise", spec, step, data, f"{rows} rows", macs, "depthwise: one filter a plane", units([planar.dims(out)]))


def fits(step: Step, source: Shape, out: Shape, target: Target) -> bool:
    """Whether a "depthwise" step has a stride for which rows can be loaded, and no dilation."""
    return step.attrs["dilation"] == (1, 1) and step.attrs["stride"] in ((1, 1), (2, 2)) and out[3] >= target.narrow[-1]


def rows_at_once(kernel: tuple[int, int], stride: tuple[int, int], target: Target) -> int:
    """Rows of results whose sums the registers hold beside the weights."""
    if by_columns(kernel, stride, target):
        return max(1, min(8, target.registers - kernel[0] - 2))
    taps = kernel[0] * kernel[1]
    held = taps if taps <= HELD and taps + 6 <= target.registers else 0
    return max(1, min(8 if stride[0] == 1 else 4, target.registers - held - 3))


def by_columns(kernel: tuple[int, int], stride: tuple[int, int], target: Target) -> bool:
    """Whether a block of rows goes through the window column by column, with one column's weights in registers: its numbers are loaded once for each column then, but its weights once for all rows.

    Measured, Zen 3, 5x5 and SiLU: 672 planes of 14x14 190 -> 158 us. 3x3 windows, whose weights stay in registers, gain nothing. Other targets have more registers, and were not measured.
    """
    return target.isa == "avx2" and stride == (1, 1) and kernel[0] * kernel[1] + 6 > target.registers


def cycles(out: Shape, room: int, kernel: tuple[int, int], stride: tuple[int, int], target: Target) -> float:
    """Cycles of the multiply-adds for a result of shape ``out`` whose rows lie ``room`` floats apart; each row of a block is one chain of sums."""
    starts, lanes = planar.columns(out[3], room, target)
    each = 1.0 if target.fused_narrow and lanes == target.lanes else 0.5
    return out[0] * out[1] * out[2] * len(starts) * kernel[0] * kernel[1] * max(each, _LATENCY / rows_at_once(kernel, stride, target))


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    dims = planar.dims(spec.out)

    def body(o: Any) -> None:
        tir.nest(o, units([dims]), dims, lambda n, part, c: _plane(o, spec, n, c, part, target))

    return tir.function(name, body, multiplies=target)


def _plane(o: Any, spec: Spec, n: Any, c: Any, part: Any, target: Target) -> None:
    from stages.compiler.kernels import tir

    T, out = tir.T, spec.out
    height = out.shape[2] // out.parts
    first = part * height
    start = T.Bind(n * out.image + c * out.channel)
    source = T.Bind(spec.x[0] + n * spec.x[1] + c * spec.x[2])
    if costly(spec.epilogue) and 4 * out.channel <= NEAR:  # between multiply-adds its constants would drive the weights out of the registers
        sweep(o, replace(spec, epilogue=()), n, c, source, height, first, target)
        _activate(o, spec, n, c, first, height, target)
    else:
        sweep(o, spec, n, c, source, height, first, target)
    planar.zero_frame(o, start, out, part, out.parts, target.narrow)


def _activate(o: Any, spec: Spec, n: Any, c: Any, first: Any, height: int, target: Target) -> None:
    """The epilogue of ``height`` rows of sums from row ``first`` on, in place, by a walk along all their floats: each once, those of the frame between them too."""
    from stages.compiler.kernels import tir

    def finish(offset: Any, lanes: int) -> None:
        pixel = first * spec.out.cols + offset
        here = spec.out.origin + n * spec.out.image + c * spec.out.channel + pixel
        planar.finish(o, o.y[tir.at(here, lanes)], spec.epilogue, spec.extras, n, c, pixel, lanes, spec.out)

    wide = 2 * target.lanes if target.isa == "avx2" else target.lanes  # two vectors' long chains of operations take turns. Measured, Zen 3, SiLU: 240 planes of 14x14 76 -> 65 us
    whole, rest = divmod((height - 1) * spec.out.cols + spec.out.shape[3], wide)
    with tir.T.serial(0, whole) as v:
        finish(v * wide, wide)
    for start, lanes in tir.widths(rest, target.narrow):
        finish(whole * wide + start, lanes)


def sweep(o: Any, spec: Spec, n: Any, c: Any, source: Any, height: int, first: Any, target: Target) -> None:
    """``height`` rows of results of plane ``c`` from row ``first`` on. ``source``: the float of o.x at which the window of the first result of row 0 begins."""
    from stages.compiler.kernels import tir

    T, taps = tir.T, spec.kernel[0] * spec.kernel[1]
    starts, lanes = planar.columns(spec.out.shape[3], spec.out.cols, target)

    def weight(tap: int) -> Any:
        return T.Bind(T.broadcast(o.w[c * taps + tap], lanes) if lanes > 1 else o.w[c * taps + tap])

    columns = by_columns(spec.kernel, spec.stride, target)
    held = [weight(tap) for tap in range(taps)] if taps <= HELD and taps + 6 <= target.registers else []

    def get(tap: int) -> Any:
        return held[tap] if held else weight(tap)

    def block(y: Any, rows: int, col: Any) -> None:
        if columns:
            _by_columns(o, spec, weight, (n, c, y), rows, source, col, lanes, target)
        else:
            _block(o, spec, get, (n, c, y), rows, source, col, lanes)

    for rows, row0, tiles in split(height, spec.rows):
        with T.serial(0, tiles) as tile:
            y = T.Bind(tile * rows + row0 + first)
            if len(starts) <= MOST_COLUMNS // 4:
                for col in starts:
                    block(y, rows, col)
                continue
            whole = spec.out.shape[3] // lanes
            with T.serial(0, whole) as j:
                block(y, rows, j * lanes)
            for col in starts[whole:]:
                block(y, rows, col)


def _by_columns(o: Any, spec: Spec, weight: Any, place: tuple[Any, Any, Any], rows: int, source: Any, col: Any, lanes: int, target: Target) -> None:
    """``rows`` rows times one vector of results, a column of the window after the other."""
    from stages.compiler.kernels import tir
    from stages.compiler.kernels.planar_rows import mask

    T, (n, c, y), (kh, kw) = tir.T, place, spec.kernel
    sums = [T.Bind(T.broadcast(o.b[c], lanes) if lanes > 1 else o.b[c])] * rows
    corner = T.Bind(source + y * spec.x[3] + col)
    for tap in range(kw):
        weights = [weight(row * kw + tap) for row in range(kh)]
        for line in range(rows + kh - 1):
            value = T.Bind(o.x[tir.at(corner + (line * spec.x[3] + tap), lanes)])
            for r in range(max(0, line - kh + 1), min(rows, line + 1)):
                sums[r] = T.Bind(tir.multiply_add(sums[r], value, weights[line - r], lanes, target, 1))
    for r in range(rows):
        planar.finish(o, sums[r], spec.epilogue, spec.extras, n, c, (y + r) * spec.out.cols + col, lanes, spec.out, mask(spec.out.shape[3], lanes))


def _block(o: Any, spec: Spec, weight: Any, place: tuple[Any, Any, Any], rows: int, source: Any, col: Any, lanes: int) -> None:
    """``rows`` rows times one vector of results."""
    from stages.compiler.kernels import tir
    from stages.compiler.kernels.planar_rows import Row, mask

    T, (n, c, y), (kh, kw), (sh, sw) = tir.T, place, spec.kernel, spec.stride
    bias = T.Bind(T.broadcast(o.b[c], lanes) if lanes > 1 else o.b[c])
    sums = [bias] * rows
    corner = T.Bind(source + y * (sh * spec.x[3]) + col * sw)
    for line in range((rows - 1) * sh + kh):
        row = Row(o.x, corner + line * spec.x[3], sw, lanes)
        for tap in range(kw):
            value = row.tap(tap)
            for r in range(rows):
                if 0 <= line - r * sh < kh:
                    sums[r] = T.Bind(sums[r] + value * weight((line - r * sh) * kw + tap))
        done = line - kh + 1
        if done >= 0 and done % sh == 0:
            r = done // sh
            planar.finish(o, sums[r], spec.epilogue, spec.extras, n, c, (y + r) * spec.out.cols + col, lanes, spec.out, mask(spec.out.shape[3], lanes))
