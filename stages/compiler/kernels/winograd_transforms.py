"""The one-dimensional transforms of Winograd convolution F(m, 3), exact, by the Cook-Toom construction. Imports numpy only.

m + 2 points (the last at infinity) turn a correlation of m + 2 inputs with 3 weights into m + 2 products: Y = A^T [(G g) * (B^T d)], applied to rows and columns (Lavin and Gray, "Fast
algorithms for convolutional neural networks", 2016; the construction by polynomial products: Blahut, "Fast algorithms for signal processing", chapter 5). The points besides 0 come in pairs
p, -p: the rows of a pair share their even and their odd powers, so a pair costs two sums of half the length. Where m is odd, the last point has no partner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

Matrix = tuple[tuple[Fraction, ...], ...]
TAPS = 3
PAIRS = (Fraction(1), Fraction(2), Fraction(1, 2))  # small numerators and denominators keep rounding errors small


@cache
def points(m: int) -> tuple[Fraction, ...]:
    """The finite points 0, 1, -1, 2, -2, 1/2, -1/2: the first m + 1 of them; ``m`` is at most 6."""
    assert m <= 2 * len(PAIRS)
    return (Fraction(0), *(sign * p for p in PAIRS for sign in (1, -1)))[: m + 1]


@cache
def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A^T (m, m + 2), G (m + 2, 3), B^T (m + 2, m + 2)) with sum_t A^T[k, t] G[t, j] B^T[t, i] = 1 where i = j + k, else 0.

    Example, m = 2: B^T = [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]].
    """
    finite = points(m)
    infinity = len(finite)
    size = infinity + 1
    a = tuple(tuple(p**k for p in finite) + (Fraction(k == m - 1),) for k in range(m))
    g = tuple(tuple(p**j / _product(p - q for q in finite if q != p) for j in range(TAPS)) for p in finite) + ((Fraction(0), Fraction(0), Fraction(1)),)
    b = tuple(_polynomial([q for q in finite if q != p], size) for p in finite) + (_polynomial(finite, size),)
    return a, g, b


def _product(factors: Any) -> Fraction:
    result = Fraction(1)
    for f in factors:
        result *= f
    return result


def _polynomial(roots: Sequence[Fraction], size: int) -> tuple[Fraction, ...]:
    """The coefficients of prod (x - root), lowest power first, filled up with zeros."""
    found = [Fraction(1)]
    for root in roots:
        found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return tuple(found) + (Fraction(0),) * (size - len(found))


def weight_transform(m: tuple[int, int]) -> np.ndarray:
    """The matrix (points, 9) that takes the nine weights of a kernel to G g G^T for tiles of ``m`` = (rows, columns), in double precision."""
    rows, cols = (np.array([[float(x) for x in row] for row in matrices(size)[1]]) for size in m)
    return np.kron(rows, cols)


Combine = Callable[[Sequence[tuple[float, Any]]], Any]
"""A sum of coefficient times value, as whatever the caller computes with."""


def input_transform(m: int, d: Sequence[Any], combine: Combine) -> list[Any]:
    """B^T d for m + 2 values."""
    return _by_pairs(matrices(m)[2], d, combine)


def kernel_transform(m: int, g: Sequence[Any], combine: Combine) -> list[Any]:
    """G g for the three weights of a row or column: m + 2 values."""
    return _by_pairs(matrices(m)[1], g, combine)


def _by_pairs(rows: Matrix, d: Sequence[Any], combine: Combine) -> list[Any]:
    """The matrix ``rows`` times ``d``: for a pair of points the even and the odd part, then their sum and difference."""
    m = len(rows) - 2

    def row(coefficients: Sequence[Fraction]) -> Any:
        return combine([(float(c), v) for c, v in zip(coefficients, d, strict=True) if c])

    made = [row(rows[0])]
    for i in range(1, m, 2):
        plus, minus = rows[i], rows[i + 1]
        even = row([(p + q) / 2 for p, q in zip(plus, minus, strict=True)])
        odd = row([(p - q) / 2 for p, q in zip(plus, minus, strict=True)])
        made += [combine([(1.0, even), (1.0, odd)]), combine([(1.0, even), (-1.0, odd)])]
    if m % 2:
        made.append(row(rows[m]))
    return [*made, row(rows[-1])]


def output_transform(m: int, products: Sequence[Any], combine: Combine) -> list[Any]:
    """A^T of m + 2 values: a pair's sum serves the even powers, its difference the odd ones."""
    pairs = [(combine([(1.0, products[i]), (1.0, products[i + 1])]), combine([(1.0, products[i]), (-1.0, products[i + 1])])) for i in range(1, m, 2)]
    made = []
    for k in range(m):
        terms = [(float(p**k), pair[k % 2]) for p, pair in zip(PAIRS, pairs, strict=False)]
        if m % 2:
            terms.append((float(points(m)[m] ** k), products[m]))
        if k == 0:
            terms.insert(0, (1.0, products[0]))
        if k == m - 1:
            terms.append((1.0, products[m + 1]))
        made.append(combine(terms))
    return made


@cache
def constants(m: tuple[int, int]) -> tuple[float, ...]:
    """The factors other than 1 and -1 that the transforms of rows and columns multiply by, without their signs."""
    found: set[float] = set()

    def combine(terms: Sequence[tuple[float, Any]]) -> None:
        found.update(abs(factor) for factor, _ in terms)

    for size in m:
        input_transform(size, [None] * (size + 2), combine)
        kernel_transform(size, [None] * TAPS, combine)
        output_transform(size, [None] * (size + 2), combine)
    return tuple(sorted(found - {1.0}))
