"""Rows of planes as vectors: loads with a step of one or two pixels. Imports TVM."""

from __future__ import annotations

from typing import Any

from stages.compiler.kernels.tir import T, at, tirx


class Row:
    """One row of a plane from float ``start`` of the buffer on, read by output vectors of ``lanes`` pixels, ``stride`` (1 or 2) input pixels apart."""

    def __init__(self, buffer: Any, start: Any, stride: int, lanes: int):
        self.buffer, self.start, self.stride, self.lanes = buffer, start, stride, lanes
        self._pairs: dict[int, tuple[Any, Any]] = {}

    def tap(self, column: int) -> Any:
        """The vector of input pixels ``column``, ``column + stride``, ... With stride 2, neighbouring columns share two loads."""
        if self.stride == 1:
            return T.Bind(self.buffer[at(self.start + column, self.lanes)])
        base = column - column % 2
        if base not in self._pairs:
            low, high = (T.Bind(self.buffer[at(self.start + (base + half * self.lanes), self.lanes)]) for half in (0, 1))
            self._pairs[base] = (low, high)
        picked = [2 * i + column % 2 for i in range(self.lanes)]
        return T.Bind(tirx.Shuffle(list(self._pairs[base]), picked))



def mask(width: int, lanes: int) -> Any:
    """Which of ``lanes`` pixels from the first of a row on belong to the row; None when all do."""
    return T.ramp(0, 1, lanes) < T.broadcast(T.int32(width), lanes) if lanes > width else None
