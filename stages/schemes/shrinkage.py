"""How far a covariance of few samples should be drawn towards equal variances. Imports nothing."""

from __future__ import annotations


def shrinkage(size: int, n: int, trace: float, square: float) -> float:
    """The share, 0 to 1, that is best for normal samples (OAS, Chen et al. 2010, equation 23), so that the covariance has full rank.

    ``trace`` is that of the covariance (``size``, ``size``) of ``n`` samples, ``square`` the trace of its square.
    """
    spread = (n + 1 - 2 / size) * (square - trace**2 / size)
    return min(1.0, ((1 - 2 / size) * square + trace**2) / spread) if spread > 0 else 1.0
