"""Depthwise convolutions of any kernel, stride and dilation: vectors along channels, a tile of pixels along the row in registers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, View, costly
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import LINE
from stages.compiler.kernels.units import channel_blocks, split, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

HOISTED = 9  # weights up to this many stay in registers along a row
ROWS = 16  # of a patch, at most
LEAST = 7  # columns of a patch; else whole rows


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x`` is the view of the input, its origin moved by the padding; ``patch`` as of ``_patch``; a tile is up to ``pixels`` pixels of a row.

    ``claiming``: a tile asks for the lines of the results below its own.
    """

    dims: tuple[int, int, int]
    x: View
    out: Layout
    extras: tuple[View, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pixels: int
    patch: tuple[int, int, int]
    epilogue: Epilogue
    claiming: bool


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "depthwise" step, None for any other."""
    step, out = placed.step, placed.output
    if step.op != "depthwise" or step.weight is None or step.bias is None:
        return None
    source, attrs, (kh, kw) = placed.inputs[0], step.attrs, step.weight.shape[2:]
    origin = source.origin - attrs["padding"][0] * source.row - attrs["padding"][1] * source.pitch
    n, c, h, w = out.shape
    pixels = _pixels(w, kh * kw, target)
    claiming = target.claims(out.size) or (target.reach.ahead > 0 and max(attrs["stride"]) > 1)
    spec = Spec((n, h, w), (origin, source.image, source.row, source.pitch), out, placed.extras, (kh, kw), attrs["stride"], attrs["dilation"], pixels, _patch(placed, target), step.epilogue, claiming)
    macs, data = c * kh * kw * n * h * w, _pack(step.weight, step.bias, out.width)
    return Kernel("depthwise", spec, step, data, f"1x{pixels} pixels", macs, "depthwise: one filter a channel", _units(spec, target))


def _units(spec: Spec, target: Target) -> int:
    return units(_dims(spec, count) for _, count, _, _ in channel_blocks(spec.out.width, target.narrow, 1))


def _dims(spec: Spec, blocks: int) -> tuple[int, ...]:
    (n, h, w), (rows, cols, beside) = spec.dims, spec.patch
    return (n, h // rows, w // cols, -(-blocks // beside))


def _patch(placed: Placed, target: Target) -> tuple[int, int, int]:
    """(rows, columns of results, blocks of channels) that are computed before others: those whose input lies in the same cache lines, in a patch whose rows of input stay in the first-level cache.

    Measured, Zen 3, 3x3: 37 -> 29 us for 384 channels at 14x14, 245 -> 212 for 32 at 112x112, 140 -> 122 for 144 at 56x56. Vectors of 16 channels are whole cache lines, and were not measured.
    """
    step, (_, _, h, w) = placed.step, placed.output.shape
    if target.isa != "avx2":
        return (1, w, 1)
    assert step.weight is not None
    line = 4 * LINE * (2 if placed.inputs[0].pitch % (2 * LINE) == 0 else 1)  # pixels at even numbers of lines use half of the cache's sets
    cols = _divisor(w, target.reach.inputs // (line * step.weight.shape[2] * step.attrs["stride"][1]))
    return (_divisor(h, ROWS), cols if cols >= LEAST else w, LINE // target.lanes)


def _divisor(total: int, most: int) -> int:
    """The largest divisor of ``total`` up to ``most``: patches must not overlap, since a result may lie where an operand was."""
    return next(d for d in range(max(1, min(total, most)), 0, -1) if total % d == 0)


def _pixels(width: int, weights: int, target: Target) -> int:
    held = weights if weights <= HOISTED else 0
    return min(width, max(2, min(8, (target.registers - held - 2) // 2)))


def _pack(weight: np.ndarray, bias: np.ndarray, width: int) -> dict[str, np.ndarray]:
    channels = weight.shape[0]
    w = np.zeros((weight.shape[2] * weight.shape[3], width), np.float32)
    w[:, :channels] = weight.reshape(channels, -1).T
    b = np.zeros(width, np.float32)
    b[:channels] = bias
    return {"w": w.ravel(), "b": b}


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import epilogue, tir

    T, tirx, (rows, cols, beside) = tir.T, tir.tirx, spec.patch
    late = costly(spec.epilogue)
    alone = replace(spec, epilogue=()) if late else spec
    asking = late and max(spec.stride) > 1 and target.reach.ahead > 0

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)
        for first, count, lanes, _ in channel_blocks(spec.out.width, target.narrow, 1):

            def visit(n: Any, band: Any, part: Any, several: Any, first: int = first, count: int = count, lanes: int = lanes) -> None:
                begin = T.Bind(several * beside)
                end = T.Bind(tirx.min(begin + beside, count))
                with T.serial(0, rows) as row, T.serial(begin, end) as block:
                    channel = T.Bind(block * lanes + first)
                    weights = _Weights(o, spec, channel, lanes)
                    for pixels, start, tiles in split(cols, spec.pixels):
                        with T.serial(0, tiles) as tile:
                            _tile(o, alone, weights, (n, band * rows + row, part * cols + (tile * pixels + start)), pixels, channel, lanes, asking)
                    if late:
                        with T.serial(0, cols) as pixel:
                            place = epilogue.Place((n, band * rows + row, part * cols + pixel), channel, lanes)
                            epilogue.finish(o, o.y[place.index(spec.out.view)], spec.epilogue, place, spec.out.view, spec.extras)

            tir.nest(o, _units(spec, target), _dims(spec, count), visit)

    return tir.function(name, body)


class _Weights:
    """Weight vectors of one block of channels: loaded once along the row when they are few, else where they are used."""

    def __init__(self, o: Any, spec: Spec, channel: Any, lanes: int):
        from stages.compiler.kernels import tir

        self.load = lambda tap: tir.T.Bind(o.w[tir.at(channel + tap * spec.out.width, lanes)])
        taps = spec.kernel[0] * spec.kernel[1]
        self.held = [self.load(tap) for tap in range(taps)] if taps <= HOISTED else None
        self.bias = tir.T.Bind(o.b[tir.at(channel, lanes)])

    def __call__(self, tap: int) -> Any:
        return self.held[tap] if self.held else self.load(tap)


def _tile(o: Any, spec: Spec, weights: _Weights, pixel: tuple[Any, Any, Any], pixels: int, channel: Any, lanes: int, asking: bool) -> None:
    """``asking``: for the input that the row below needs too."""
    from stages.compiler.kernels import epilogue, tir

    T, (n, y, x) = tir.T, pixel
    (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
    corner = T.Bind(n * spec.x[1] + y * (spec.x[2] * sh) + x * (spec.x[3] * sw) + channel)
    if asking:  # behind the sums of a row comes its epilogue, while nothing is loaded. Measured, Zen 3: 96 channels of 112x112 with stride 2 and SiLU 384 -> 275 us
        for row, column in product(range(kh, kh + sh), range(pixels * sw)):
            tir.fetch(o.x, corner + (spec.x[0] + row * spec.x[2] + column * spec.x[3]), tir.FIRST_LEVEL)
    if spec.claiming:
        for p in range(pixels):
            tir.claim(o.y, epilogue.Place((n, y + 1, x + p), channel, lanes).offset(spec.out.view))
    sums = [weights.bias] * pixels
    for row in range(kh):
        taps = [weights(row * kw + col) for col in range(kw)]
        for column in sorted({p * sw + col * dw for p in range(pixels) for col in range(kw)}):
            value = T.Bind(o.x[tir.at(corner + (spec.x[0] + row * dh * spec.x[2] + column * spec.x[3]), lanes)])
            for col in range(kw):
                p, rest = divmod(column - col * dw, sw)
                if rest == 0 and 0 <= p < pixels:
                    sums[p] = T.Bind(sums[p] + value * taps[col])
    for p in range(pixels):
        epilogue.finish(o, sums[p], spec.epilogue, epilogue.Place((n, y, x + p), channel, lanes), spec.out.view, spec.extras)
