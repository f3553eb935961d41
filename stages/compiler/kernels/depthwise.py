"""Depthwise convolutions of any kernel, stride and dilation: vectors along channels, a tile of pixels along the row in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.compiler.ir import Epilogue, Layout, View
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, split, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

HOISTED = 9  # weights up to this many stay in registers along a row


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``x`` is the view of the input, its origin moved by the padding."""

    dims: tuple[int, int, int]
    x: View
    out: Layout
    extras: tuple[View, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pixels: int
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "depthwise" step, None for any other."""
    step, out = placed.step, placed.output
    if step.op != "depthwise" or step.weight is None or step.bias is None:
        return None
    source, attrs, (kh, kw) = placed.inputs[0], step.attrs, step.weight.shape[2:]
    origin = source.origin - attrs["padding"][0] * source.row - attrs["padding"][1] * source.pitch
    n, c, h, w = out.shape
    pixels = _pixels(w, kh * kw, target)
    spec = Spec((n, h, w), (origin, source.image, source.row, source.pitch), out, placed.extras, (kh, kw), attrs["stride"], attrs["dilation"], pixels, step.epilogue)
    macs, data = c * kh * kw * n * h * w, _pack(step.weight, step.bias, out.width)
    return Kernel("depthwise", spec, step, data, f"1x{pixels} pixels", macs, "depthwise: one filter a channel", _units(spec, target))


def _units(spec: Spec, target: Target) -> int:
    return units((*spec.dims[:2], count) for _, count, _, _ in channel_blocks(spec.out.width, target.narrow, 1))


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
    from stages.compiler.kernels import tir

    T = tir.T

    def body(o: Any) -> None:
        tir.zero_frame(o, spec.out, target.narrow)
        for first, count, lanes, _ in channel_blocks(spec.out.width, target.narrow, 1):

            def row(n: Any, y: Any, block: Any, first: int = first, lanes: int = lanes) -> None:
                channel = T.Bind(block * lanes + first)
                weights = _Weights(o, spec, channel, lanes)
                for pixels, start, tiles in split(spec.dims[2], spec.pixels):
                    with T.serial(0, tiles) as tile:
                        _tile(o, spec, weights, (n, y, tile * pixels + start), pixels, channel, lanes)

            tir.nest(o, _units(spec, target), (*spec.dims[:2], count), row)

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


def _tile(o: Any, spec: Spec, weights: _Weights, pixel: tuple[Any, Any, Any], pixels: int, channel: Any, lanes: int) -> None:
    from stages.compiler.kernels import epilogue, tir

    T, (n, y, x) = tir.T, pixel
    (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
    corner = T.Bind(n * spec.x[1] + y * (spec.x[2] * sh) + x * (spec.x[3] * sw) + channel)
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
