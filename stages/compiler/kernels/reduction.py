"""One number from all channels of a pixel: vectors side by side, then their lanes. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stages.compiler.kernels import tir
from stages.compiler.kernels.tir import T
from stages.compiler.kernels.units import channel_blocks
from stages.compiler.target import Target

LOWEST = -3.4028234e38
_SIDE_BY_SIDE = 4  # vectors, so that a sum needn't wait for the one before


def over_channels(
    buffer: Any, start: Any, channels: int, target: Target, neutral: float, take: Callable[[Any, Any, int], Any], join: Callable[[Any, Any], Any]
) -> Any:
    """``join`` of all ``take(partial result, value, lanes)`` over the ``channels`` floats of ``buffer`` from ``start`` on, exactly these: rounding up to vectors would count others."""
    total = T.alloc_buffer((1,), "float32", scope="local")
    T.buffer_store(total, T.float32(neutral), [0])
    for first, count, lanes, vectors in channel_blocks(channels, target.narrow, _SIDE_BY_SIDE):
        partial = T.alloc_buffer((vectors * lanes,), "float32", scope="local")
        for v in range(vectors):
            tir.store(partial, v * lanes, tir.splat(neutral, lanes), lanes)
        with T.serial(0, count) as block:
            for v in range(vectors):
                slot = tir.at(v * lanes, lanes)
                value = T.Bind(buffer[tir.at(start + (block * (vectors * lanes) + (first + v * lanes)), lanes)])
                T.buffer_store(partial, take(partial[slot], value, lanes), [slot])
        left = [partial[tir.at(v * lanes, lanes)] for v in range(vectors)]
        tir.store(partial, 0, _tree(left, join), lanes)
        T.buffer_store(total, join(total[0], _tree([partial[k] for k in range(lanes)], join)), [0])
    return T.Bind(total[0])


def _tree(values: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Neighbours first: a short chain, and sums of like size."""
    while len(values) > 1:
        values = [join(*values[k : k + 2]) if k + 1 < len(values) else values[k] for k in range(0, len(values), 2)]
    return values[0]
