"""skopt's Gaussian process on Weisfeiler-Lehman features, its depth, scale and noise by marginal likelihood (NAS-BOWL, Ru et al. 2021). Imports wl; skopt and scipy in functions.

The kernel is linear in the features, so one eigendecomposition per depth gives the likelihood of every scale and noise: a grid of them costs less than one step of a gradient search
(and has no local optima), which leaves a search of 200 trials a fraction of a second for each lesson.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.search.wl import wl_features

SCALES = np.logspace(-1, 2, 13)  # prior variance: unlike NAS-BOWL's graphs, ours share most labels, so small angles must carry the whole spread


class Surrogate:
    """A Gaussian process on the candidates ``rows`` of ``counts`` (wl_counts of all candidates in question), for a target that is to be low; it then tells about any others of them.

    Targets are standardised. ``noise`` are the least and the most variance of their noise. The depth of the kernel is the likeliest of 1..``wl_depth``.
    """

    def __init__(self, counts: Sequence[np.ndarray], rows: Sequence[int], targets: Sequence[float], wl_depth: int, noise: tuple[float, float]):
        self.mean, self.std = float(np.mean(targets)), float(np.std(targets)) or 1.0
        standardised = (np.asarray(targets) - self.mean) / self.std
        fits = []
        for depth in range(1, wl_depth + 1):
            features = wl_features(counts, depth)
            fits.append((*likeliest(features[list(rows)], standardised, noise), -depth, features))
        _, scale, variance, _, self.features = max(fits, key=lambda fit: (fit[0], fit[3]))
        self.model = fit_gp(self.features[list(rows)], standardised, scale, variance)

    def probability_below(self, limit: float, rows: Sequence[int]) -> np.ndarray:
        """Probability that the target of each row is below ``limit``."""
        from scipy.stats import norm

        mean, std = self.model.predict(self.features[list(rows)], return_std=True)
        return norm.cdf(((limit - self.mean) / self.std - mean) / np.maximum(std, 1e-9))

    def improvement(self, over: Sequence[int], rows: Sequence[int], xi: float = 0.0) -> np.ndarray:
        """Expected improvement of each row, in standard deviations, over the lowest of the rows ``over`` as the process sees them (their noise would make a lucky one unbeatable)."""
        from skopt.acquisition import gaussian_ei

        return gaussian_ei(self.features[list(rows)], self.model, y_opt=self.model.predict(self.features[list(over)]).min(), xi=xi)

    def predict(self, rows: Sequence[int]) -> np.ndarray:
        """The target expected of each row."""
        return self.mean + self.std * self.model.predict(self.features[list(rows)])


def likeliest(features: np.ndarray, targets: np.ndarray, noise: tuple[float, float]) -> tuple[float, float, float]:
    """(log marginal likelihood, scale, noise variance) of targets ~ N(0, scale * features.features' + noise * I), the best of a grid."""
    values, vectors = np.linalg.eigh(features @ features.T)
    turned = (vectors.T @ targets) ** 2
    variances = np.geomspace(*noise, 13)
    spectrum = SCALES[:, None, None] * np.maximum(values, 0.0) + variances[:, None]  # (scales, variances, targets)
    likelihood = -0.5 * (turned / spectrum + np.log(spectrum) + np.log(2 * np.pi)).sum(-1)
    i, j = np.unravel_index(likelihood.argmax(), likelihood.shape)
    return float(likelihood[i, j]), float(SCALES[i]), float(variances[j])


def fit_gp(features: np.ndarray, targets: np.ndarray, scale: float, noise: float) -> Any:
    """skopt's process with the kernel ``scale * features.features'`` and that noise; features (trials, labels) of unit length, so it is the normalised WL kernel."""
    from skopt.learning import GaussianProcessRegressor
    from skopt.learning.gaussian_process.kernels import ConstantKernel, DotProduct

    kernel = ConstantKernel(scale, "fixed") * DotProduct(0.0, "fixed")
    return GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(features, targets)
