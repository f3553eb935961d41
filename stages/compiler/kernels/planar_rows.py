"""Rows of planes as vectors: loads with a step of one or two pixels. Imports TVM."""

from __future__ import annotations

from typing import Any

from stages.compiler.kernels.tir import T, at, tirx


class Row:
    """One row of a plane from float ``start`` of the buffer on, read by output vectors of ``lanes`` pixels, ``stride`` (1 or 2) input pixels apart."""

    def __init__(self, buffer: Any, start: Any, stride: int, lanes: int):
        self.buffer, self.start, self.stride, self.lanes = buffer, start, stride, lanes
        self._loaded: dict[int, Any] = {}
        self._picked: dict[int, Any] = {}

    def tap(self, column: int) -> Any:
        """The vector of input pixels ``column``, ``column + stride``, ... With stride 2, all columns share three loads: those from 2 on are the first two, shifted."""
        if self.stride == 1:
            return self._load(column)
        if column not in self._picked:
            self._picked[column] = T.Bind(self._pick(column))
        return self._picked[column]

    def _load(self, column: int) -> Any:
        if column not in self._loaded:
            self._loaded[column] = T.Bind(self.buffer[at(self.start + column, self.lanes)])
        return self._loaded[column]

    def _pick(self, column: int) -> Any:
        shift, parity = divmod(column, 2)
        if shift == 0 or 2 * shift > self.lanes:
            base, every = column - parity, [2 * i + parity for i in range(self.lanes)]
            return tirx.Shuffle([self._load(base), self._load(base + self.lanes)], every)
        behind = [self.lanes + 2 * i + parity for i in range(shift)]  # the pixels that move in
        return tirx.Shuffle([self.tap(parity), self._load(2 * self.lanes)], [*range(shift, self.lanes), *behind])


def mask(width: int, lanes: int) -> Any:
    """Which of ``lanes`` pixels from the first of a row on belong to the row; None when all do."""
    return T.ramp(0, 1, lanes) < T.broadcast(T.int32(width), lanes) if lanes > width else None
