"""Packed weights times a squeeze-and-excitation gate, for the convolutions that gates.py gave one. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from stages.compiler.kernels import tir


def scale_weights(o: Any, gates: Any, segments: Iterable[tuple[int, int]], channel: Callable[[Any], Any], lanes: tuple[int, ...]) -> None:
    """All packed weights times the gate of their input channel, into scratch memory, from where the kernel reads them from then on: every call does it for itself, they are few.

    ``segments``: (groups, filters of each). ``channel``: entry of idx -> float of ``gates``. ``lanes``: vector widths, widest first.
    """
    T, before = tir.T, 0
    for count, filters in segments:
        with T.serial(before, before + count) as group:
            k0, entries, w0 = (T.Bind(o.ptr[group * 3 + i]) for i in range(3))
            with T.serial(0, entries) as k:
                factor = T.Bind(gates[channel(k0 + k)])
                at = T.Bind(w0 + k * filters)
                for start, width in tir.widths(filters, lanes):
                    index = tir.at(at + start, width)
                    T.buffer_store(o.s, o.w[index] * tir.spread(factor, width), [index])
        before += count
    o.w = o.s
