"""What happens to a result before it is stored: activations, residual sums, gates; as vector arithmetic. Imports TVM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Epilogue, View
from stages.compiler.kernels.tir import T, at, splat, tirx


@dataclass(frozen=True)
class Place:
    """Where one vector of results belongs: ``pixel`` (image, row, column), first ``channel``, ``lanes`` channels."""

    pixel: tuple[Any, Any, Any]
    channel: Any
    lanes: int

    def offset(self, view: View) -> Any:
        """The place in a buffer that is walked by ``view``."""
        n, y, x = self.pixel
        return n * view[1] + y * view[2] + x * view[3] + view[0] + self.channel

    def index(self, view: View) -> Any:
        """The index of the whole vector."""
        return at(self.offset(view), self.lanes)


def finish(o: Any, value: Any, items: Epilogue, place: Place, y: View, extras: tuple[View, ...]) -> None:
    """Apply the epilogue to one vector of results, with the further operands at the same place, and store it."""
    operands = (o.e0, o.e1, o.e2)

    def channelwise() -> tuple[Any, Any]:
        index = at(place.channel, place.lanes)
        return o.w[index], o.b[index]

    result = apply(items, value, place.lanes, lambda k: operands[k][place.index(extras[k])], channelwise)
    T.buffer_store(o.y, result, [place.index(y)])


def apply(items: Epilogue, value: Any, lanes: int, operand: Callable[[int], Any], channelwise: Callable[[], tuple[Any, Any]]) -> Any:
    """``value`` (a vector of ``lanes`` floats) after every item. ``operand(k)`` loads the k-th further operand's vector, ``channelwise()`` the (scale, shift) of "affine"."""
    for item in items:
        name = item[0]
        if name in _BINARY:
            value = _BINARY[name](value, operand(item[1]))
        elif name == "affine":
            scale, shift = channelwise()
            value = value * scale + shift
        else:
            value = T.Bind(_UNARY[name](T.Bind(value), lanes, *item[1:]))
    return value


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda v, e: v + e,
    "sub": lambda v, e: v - e,
    "rsub": lambda v, e: e - v,
    "mul": lambda v, e: v * e,
    "div": lambda v, e: v / e,
    "rdiv": lambda v, e: e / v,
}


def _clip(v: Any, lanes: int, low: float, high: float) -> Any:
    return tirx.min(tirx.max(v, splat(low, lanes)), splat(high, lanes))


def _hardsigmoid(v: Any, lanes: int) -> Any:
    return _clip(v * splat(1 / 6, lanes) + splat(0.5, lanes), lanes, 0.0, 1.0)


def _leaky_relu(v: Any, lanes: int, slope: float) -> Any:
    return tirx.max(v, splat(0, lanes)) + tirx.min(v, splat(0, lanes)) * splat(slope, lanes)


def _horner(v: Any, lanes: int, coefficients: tuple[float, ...]) -> Any:
    """The polynomial with these coefficients, highest power first."""
    result = splat(coefficients[0], lanes)
    for c in coefficients[1:]:
        result = result * v + splat(c, lanes)
    return result


_EXP2 = (0.0013276471862381579, 0.009675541522457698, 0.05550713275545207, 0.24022119720392102, 0.6931469670624797, 1.0000000716553719)
_EXP2_SHORT = (0.009570101909125979, 0.05591786031921908, 0.24024744827914063, 0.6931218147367197, 0.9999992614456974)
_ROUND = 1.5 * 2**23 + 127  # added to a small float, it leaves the nearest whole number, as the exponent of a float, in the lowest bits


def exp(v: Any, lanes: int, sign: int = 1) -> Any:
    """e^v, or e^-v with ``sign`` -1, saturating at the float range. Relative error 4e-7 for |v| < 10, 2e-6 at the ends of the range."""
    fraction, power = _exp(v, lanes, sign, _EXP2)
    return T.Bind(fraction * power)


def _exp(v: Any, lanes: int, sign: int, coefficients: tuple[float, ...]) -> tuple[Any, Any]:
    """e^v or e^-v as 2^f, |f| <= 1/2, a polynomial with ``coefficients`` (degree 5: minimax, 7.5e-8; degree 4: 2.6e-6 more), and 2^k, whose exponent is k: a sum takes both in one multiply-add."""
    log2e = splat(sign * math.log2(math.e), lanes)
    low, high = (-87.3, 88.3) if sign > 0 else (-88.3, 87.3)
    v = T.Bind(_clip(v, lanes, low, high))
    kind, floats = (f"int32x{lanes}", f"float32x{lanes}") if lanes > 1 else ("int32", "float32")
    rounded = T.Bind(tirx.reinterpret(kind, v * log2e + splat(_ROUND, lanes)))
    f = T.Bind(v * log2e - T.Bind(tirx.reinterpret(floats, rounded) - splat(_ROUND, lanes)))  # as floats alone, TIR would cancel the rounding
    power = T.Bind(tirx.reinterpret(floats, T.Bind(rounded << _int(23, lanes))))
    return T.Bind(_horner(f, lanes, coefficients)), power


def _int(value: int, lanes: int) -> Any:
    return T.broadcast(T.int32(value), lanes) if lanes > 1 else T.int32(value)


def _sigmoid(v: Any, lanes: int) -> Any:
    fraction, power = _exp(v, lanes, -1, _EXP2)
    return splat(1, lanes) / (fraction * power + splat(1, lanes))


def _silu(v: Any, lanes: int) -> Any:
    """Half of the shorter polynomial's error arrives. Measured, Zen 3: 6.6 cycles a vector, 7.7 with the longer one and without the multiply-add."""
    fraction, power = _exp(v, lanes, -1, _EXP2_SHORT)
    return v / (fraction * power + splat(1, lanes))


def _tanh(v: Any, lanes: int) -> Any:
    return splat(2, lanes) * _sigmoid(v * splat(2, lanes), lanes) - splat(1, lanes)


def _gelu(v: Any, lanes: int, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = splat(math.sqrt(2 / math.pi), lanes) * (v + splat(0.044715, lanes) * v * v * v)
        return v * _sigmoid(splat(2, lanes) * inner, lanes)
    z = T.Bind(tirx.max(v, splat(0, lanes) - v) * splat(math.sqrt(0.5), lanes))  # erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7
    t = T.Bind(splat(1, lanes) / (splat(1, lanes) + splat(0.3275911, lanes) * z))
    tail = T.Bind(_horner(t, lanes, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)) * t * exp(splat(0, lanes) - z * z, lanes))
    half = splat(0.5, lanes) * v
    return tirx.max(half, splat(0, lanes) - half) * (splat(1, lanes) - tail) + half  # 0.5 v (1 + erf(v / sqrt 2)); erf is odd


def _mish(v: Any, lanes: int) -> Any:
    e = exp(tirx.min(v, splat(20, lanes)), lanes)  # tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2)
    n = T.Bind(e * (e + splat(2, lanes)))
    return v * n / (n + splat(2, lanes))


def _elu(v: Any, lanes: int, alpha: float) -> Any:
    return tirx.max(v, splat(0, lanes)) + splat(alpha, lanes) * (exp(tirx.min(v, splat(0, lanes)), lanes) - splat(1, lanes))


def _softplus(v: Any, lanes: int, beta: float, threshold: float) -> Any:
    b = T.Bind(v * splat(beta, lanes))
    u = exp(tirx.min(b, splat(0, lanes) - b), lanes)  # log(1 + e^b) = max(b, 0) + log1p(e^-|b|); log1p(u) = 2 atanh(u / (2 + u))
    s = T.Bind(u / (splat(2, lanes) + u))
    series = _horner(T.Bind(s * s), lanes, (2 / 13, 2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0))
    smooth = T.Bind((tirx.max(b, splat(0, lanes)) + s * T.Bind(series)) * splat(1 / beta, lanes))
    return tirx.Select(b > splat(threshold, lanes), v, smooth)


_UNARY: dict[str, Callable[..., Any]] = {
    "relu": lambda v, lanes: tirx.max(v, splat(0, lanes)),
    "relu6": lambda v, lanes: _clip(v, lanes, 0, 6),
    "hardtanh": _clip,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda v, lanes: v * _hardsigmoid(v, lanes),
    "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "tanh": _tanh,
    "gelu": _gelu,
    "mish": _mish,
    "elu": _elu,
    "softplus": _softplus,
    "scale": lambda v, lanes, factor: v * splat(factor, lanes),
    "shift": lambda v, lanes, offset: v + splat(offset, lanes),
}
