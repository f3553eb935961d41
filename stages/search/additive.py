"""A figure of a candidate as a sum of what each slot's choice contributes, learnt from trials: what ilp optimises and anneal is guided by. Imports space only.

The contributions of a slot are a Gaussian process over its choices, in which those that stand side by side are alike, so a choice that was never tried is worth what its neighbours are. Estimates that
the space brings (``Space.costs``) are the mean, up to a factor that is learnt with the rest: how much a one-shot loss is worth after retraining isn't known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.search.space import Choices, Space

LIKENESS = 0.25  # correlation length of the choices of a slot, as a share of its length
NOISES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # variances relative to the contributions', of which the marginal likelihood picks one
DOUBT = 0.5  # standard deviation of the estimates' factor, as a share of it


class Additive:
    """``base + sum(effects[slot][position])``: the posterior mean, given ``seen`` candidates and their ``targets``.

    ``estimates`` are prior means of ``effects``. Their factor is near 1 if they have the ``same_units`` as the targets; else near the value that gives both the same spread.
    """

    def __init__(self, space: Space, seen: Sequence[Choices], targets: Sequence[float], estimates: Sequence[Sequence[float]] | None = None, same_units: bool = False):
        self.space = space
        prior = [np.zeros(len(slot)) for slot in space.slots] if estimates is None else [np.asarray(e, float) for e in estimates]
        self.effects, self.base = prior, 0.0
        if not len(seen):
            return
        positions = np.array([space.encode(c) for c in seen], int).reshape(len(seen), len(space.slots)).T
        y = np.asarray(targets, float)
        std, share = y.std() or 1.0, 1 / max(1, len(space.slots))
        within = [share * _likeness(len(slot)) for slot in space.slots]
        kernel = sum((k[np.ix_(p, p)] for k, p in zip(within, positions, strict=True)), np.zeros((len(y), len(y))))
        summed = sum((e[p] for e, p in zip(prior, positions, strict=True)), np.zeros(len(y)))
        centred = (summed - summed.mean()) / std
        factor = 1.0 if same_units or not centred.any() else 1 / centred.std()
        alpha = _weights(kernel + (DOUBT * factor) ** 2 * np.outer(centred, centred), (y - y.mean()) / std - factor * centred)
        factor += (DOUBT * factor) ** 2 * float(centred @ alpha)
        self.effects = [std * (k[:, p] @ alpha) + factor * e for k, p, e in zip(within, positions, prior, strict=True)]
        self.base = float(y.mean() - factor * summed.mean())

    def __call__(self, choices: Choices) -> float:
        """The figure expected of a candidate."""
        return self.base + sum(float(e[p]) for e, p in zip(self.effects, self.space.encode(choices), strict=True))


def _likeness(length: int) -> np.ndarray:
    places = np.arange(length)
    likeness: np.ndarray = np.exp(-np.abs(places[:, None] - places) / max(1.0, LIKENESS * length))
    return likeness


def _weights(kernel: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(K + noise * I)^-1 y, the noise by marginal likelihood at the likeliest scale of K."""
    values, vectors = np.linalg.eigh(kernel)
    values, turned = np.maximum(values, 0.0), vectors.T @ y

    def misfit(noise: float) -> float:
        return float(len(y) * np.log((turned**2 / (values + noise)).mean() + 1e-12) + np.log(values + noise).sum())

    noise = min(NOISES, key=misfit)
    weights: np.ndarray = vectors @ (turned / (values + noise))
    return weights
