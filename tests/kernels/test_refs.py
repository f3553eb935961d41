"""How the network sees a Value: any row of reshapes, permutations and slices against numpy's."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.compiler.refs import CHANNELS_LAST, Digit, Ref, whole


def seen(ref: Ref, value: np.ndarray) -> np.ndarray:
    """The tensor that ``ref`` stands for, as strides into ``value`` (n, c, h, w)."""
    strides = [digit.step * value.strides[digit.axis] for digit in ref.digits]
    start = value[tuple(slice(place, None) for place in ref.first)]
    return np.lib.stride_tricks.as_strided(start, [digit.size for digit in ref.digits], strides).reshape(ref.shape)


def factored(data: st.DataObject, total: int) -> tuple[int, ...]:
    """A shape with ``total`` elements."""
    shape = []
    while total > 1 and len(shape) < 5:
        shape.append(data.draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0])))
        total //= shape[-1]
    return (*shape, total)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), sizes=st.tuples(*(st.sampled_from((1, 2, 3, 4, 6)) for _ in range(4))))
def test_a_ref_stands_for_what_numpy_computes(data: st.DataObject, sizes: tuple[int, int, int, int]) -> None:
    value = np.arange(math.prod(sizes)).reshape(sizes)
    ref, expected = whole("x", sizes, (0, 1, 2, 3)), value
    for kind in data.draw(st.lists(st.sampled_from(("reshape", "permute", "slice")), max_size=5)):
        made: Ref | None = ref
        if kind == "reshape":
            shape = factored(data, math.prod(expected.shape))
            made, after = ref.reshaped(shape), expected.reshape(shape)
        elif kind == "permute":
            order = data.draw(st.permutations(range(expected.ndim)))
            made, after = ref.permuted(order), expected.transpose(order)
        else:
            dim = data.draw(st.integers(0, expected.ndim - 1))
            start, step = data.draw(st.integers(0, expected.shape[dim] - 1)), data.draw(st.integers(1, 3))
            after = expected[(slice(None),) * dim + (slice(start, None, step),)]
            made = ref.sliced(dim, start, step, after.shape[dim])
        if made is not None:  # None: it can't be said without moving elements
            ref, expected = made, after
        np.testing.assert_array_equal(seen(ref, value), expected)


def test_a_channel_shuffle_is_two_digits_of_the_channels() -> None:
    ref = whole("x", (1, 12, 4, 5), (0, 1, 2, 3)).reshaped((1, 3, 4, 4, 5))
    assert ref is not None
    mixed = ref.permuted((0, 2, 1, 3, 4)).reshaped((1, 12, 4, 5))
    assert mixed is not None and mixed.dims[1] == (Digit(1, 1, 4), Digit(1, 4, 3))
    assert mixed.axes() is None


def test_dimensions_of_size_one_take_the_axes_that_are_left() -> None:
    assert whole("x", (1, 7, 1, 1), (0, 1)).axes() == (0, 1)
    assert whole("x", (2, 1, 1, 1), CHANNELS_LAST).axes() == (0, 1, 2, 3)
    assert whole("x", (2, 5, 1, 1), CHANNELS_LAST).axes() == CHANNELS_LAST


def test_what_cuts_a_dimension_unevenly_has_no_view() -> None:
    assert whole("x", (1, 2, 3, 1), (0, 1, 2, 3)).reshaped((3, 2)) is None
