"""Ref: how the network sees a Value. Reshapes, permutations and flattenings move no float as long as every dimension stays a product of parts of the Value's axes. Imports nothing of npas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

N, C, H, W = range(4)  # the axes of a Value
AXES = {1: (N,), 2: (N, C), 3: (N, H, C), 4: (N, C, H, W)}
"""Which axis of a new Value each dimension of a tensor becomes, by rank: matrices are (n, c), sequences (n, length, c), images (n, c, h, w)."""
CHANNELS_LAST = (N, H, W, C)


@dataclass(frozen=True)
class Digit:
    """Part of a Value's axis: ``size`` (> 1) places, ``step`` apart."""

    axis: int
    step: int
    size: int


Dim = tuple[Digit, ...]  # most significant first; empty for a dimension of size 1


@dataclass(frozen=True)
class Ref:
    """What a layer's name stands for: a Value, and for each dimension of the layer's shape the Digits that count it. ``first`` is the place of element 0 on each axis.

    Example: the Value x (2, 12, 4, 5), seen as (2, 4, 5, 12) after ``permute(0, 2, 3, 1)``: dims = ((n,), (h,), (w,), (c,)) with c = Digit(1, 1, 12); seen as (2, 3, 4, 20) after
    ``view(2, 3, 4, 20)``: ((n,), (Digit(1, 4, 3),), (Digit(1, 1, 4),), (h, w)).
    """

    value: str
    dims: tuple[Dim, ...]
    first: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(size(dim) for dim in self.dims)

    @property
    def digits(self) -> Dim:
        """All digits, most significant first."""
        return tuple(digit for dim in self.dims for digit in dim)

    def axes(self) -> tuple[int, ...] | None:
        """The axis of each dimension, where every dimension is a whole axis of its own or of size 1; None where one is not."""
        found = [dim[0].axis if len(dim) == 1 and dim[0].step == 1 else None for dim in self.dims]
        if any(dim and axis is None for dim, axis in zip(self.dims, found, strict=True)):
            return None
        usual = AXES.get(len(found), ())
        free = [axis for axis in usual if axis not in found]  # dimensions of size 1 take what is left, their own axis first
        for k, axis in enumerate(found):
            if axis is None:
                if not free:
                    return None
                taken = usual[k] if usual[k] in free else free[0]
                free.remove(taken)
                found[k] = taken
        return tuple(axis for axis in found if axis is not None)

    def permuted(self, order: Sequence[int]) -> Ref:
        """Dimensions in another order."""
        return replace(self, dims=tuple(self.dims[k] for k in order))

    def sliced(self, dim: int, start: int, step: int, count: int) -> Ref | None:
        """``count`` elements of a dimension, ``step`` apart; None where the dimension has more than one digit."""
        digits = self.dims[dim]
        if len(digits) > 1:
            return None
        kept: Dim = tuple(Digit(digit.axis, digit.step * step, count) for digit in digits if count > 1)
        moved = self.moved(digits[0].axis, start * digits[0].step) if digits else self
        return replace(moved, dims=(*self.dims[:dim], kept, *self.dims[dim + 1 :]))

    def moved(self, axis: int, places: int) -> Ref:
        """The same view ``places`` further along one axis."""
        first = [place + places if k == axis else place for k, place in enumerate(self.first)]
        return replace(self, first=(first[0], first[1], first[2], first[3]))

    def reshaped(self, shape: Sequence[int]) -> Ref | None:
        """The same elements in the same order in another shape; None where a dimension would cut a digit unevenly."""
        rest, dims = list(self.digits), []
        for wanted in shape:
            dim: list[Digit] = []
            while wanted > 1:
                if not rest:
                    return None
                digit = rest.pop(0)
                if wanted % digit.size == 0:
                    dim.append(digit)
                    wanted //= digit.size
                elif digit.size % wanted == 0:
                    low = digit.size // wanted
                    dim.append(Digit(digit.axis, digit.step * low, wanted))
                    rest.insert(0, Digit(digit.axis, digit.step, low))
                    wanted = 1
                else:
                    return None
            dims.append(_joined(dim))
        return replace(self, dims=tuple(dims))


def size(dim: Dim) -> int:
    """Elements of a dimension."""
    return prod(digit.size for digit in dim)


def whole(value: str, shape: tuple[int, int, int, int], axes: Sequence[int]) -> Ref:
    """All of a Value of ``shape``; dimension k is its axis ``axes[k]``."""
    return Ref(value, tuple((Digit(axis, 1, shape[axis]),) if shape[axis] > 1 else () for axis in axes))


def _joined(digits: Sequence[Digit]) -> Dim:
    """Neighbours that count on where the other ends become one: (c, 4, 3), (c, 1, 4) -> (c, 1, 12)."""
    found: list[Digit] = []
    for digit in digits:
        if found and found[-1].axis == digit.axis and found[-1].step == digit.step * digit.size:
            digit = Digit(digit.axis, digit.step, found.pop().size * digit.size)
        found.append(digit)
    return tuple(found)
