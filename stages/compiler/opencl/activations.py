"""Activations with exponentials, by the functions that every OpenCL device has: faster and more exact there than the polynomials of the processor's kernels. Imports TVM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from stages.compiler.ir import Epilogue
from stages.compiler.kernels import epilogue
from stages.compiler.kernels.tir import T, splat, tirx


def apply(items: Epilogue, value: Any, lanes: int, operand: Callable[[int], Any], channelwise: Callable[[], tuple[Any, Any]]) -> Any:
    """As epilogue.apply."""
    for item in items:
        if item[0] in _OWN:
            value = T.Bind(_OWN[item[0]](T.Bind(value), lanes, *item[1:]))
        else:
            value = epilogue.apply((item,), value, lanes, operand, channelwise)
    return value


def call(name: str, v: Any, lanes: int = 1) -> Any:
    """A function of OpenCL C of each lane."""
    return T.Bind(tirx.call_pure_extern("float32" if lanes == 1 else f"float32x{lanes}", name, v))


def _sigmoid(v: Any, lanes: int) -> Any:
    return splat(1, lanes) / (splat(1, lanes) + call("exp", splat(0, lanes) - v, lanes))


def _gelu(v: Any, lanes: int, approximate: str = "none") -> Any:
    if approximate == "tanh":
        curve = call("tanh", splat(math.sqrt(2 / math.pi), lanes) * (v + splat(0.044715, lanes) * v * v * v), lanes)
    else:
        curve = call("erf", v * splat(math.sqrt(0.5), lanes), lanes)
    return splat(0.5, lanes) * v * (splat(1, lanes) + curve)


def _elu(v: Any, lanes: int, alpha: float) -> Any:
    below = call("expm1", tirx.min(v, splat(0, lanes)), lanes)
    return tirx.max(v, splat(0, lanes)) + splat(alpha, lanes) * below


def _log1p_exp(v: Any, lanes: int) -> Any:
    """log(1 + e^v), without overflow."""
    return tirx.max(v, splat(0, lanes)) + call("log1p", call("exp", tirx.min(v, splat(0, lanes) - v), lanes), lanes)


def _softplus(v: Any, lanes: int, beta: float, threshold: float) -> Any:
    return _log1p_exp(T.Bind(v * splat(beta, lanes)), lanes) * splat(1 / beta, lanes)  # PyTorch's threshold only avoids an overflow that can't happen here


_OWN: dict[str, Callable[..., Any]] = {
    "sigmoid": _sigmoid,
    "silu": lambda v, lanes: v / (splat(1, lanes) + call("exp", splat(0, lanes) - v, lanes)),
    "tanh": lambda v, lanes: call("tanh", v, lanes),
    "gelu": _gelu,
    "mish": lambda v, lanes: v * call("tanh", _log1p_exp(v, lanes), lanes),
    "elu": _elu,
    "softplus": _softplus,
}
