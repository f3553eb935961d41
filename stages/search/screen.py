"""npas and bo: a Gaussian process with a Weisfeiler-Lehman kernel screens a pool of proposals by expected improvement (NPAS, section 5.2; NAS-BOWL). Imports sampler, wl; skopt in functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices, Space
from stages.search.wl import wl_features, wl_histograms

NOISE, NOISE_BOUNDS = 1e-3, (1e-5, 1e-2)  # variance of standardised targets (NAS-BOWL)
SCALE_BOUNDS = (0.1, 100.0)  # prior variance: unlike NAS-BOWL's graphs, ours share most labels, so small angles must carry the whole spread
PARENTS = 5  # the best trials, which the pool's neighbours come from


class Screened(Sampler):
    """A proposer's pool, screened: of ``pool`` candidates those with the highest expected improvement of the reward are asked.

    Half of the pool are the proposer's; half are neighbours of the best trials (NAS-BOWL's mutations, and crossings of two of them): with more slots than trials an
    independent draw almost never comes near the budget, while a step from something that does is a real proposal. The first ``initial`` trials aren't screened.
    Failed trials never reach the Gaussian process.
    """

    def __init__(self, proposer: Callable[..., Sampler], *args: Any, alpha: float = 2.0, pool: int = 100, initial: int = 10, wl_depth: int = 3, **options: Any):
        super().__init__(*args, alpha=alpha)
        self.proposer = proposer(*args, alpha=alpha, **options)
        self.proposer.told, self.proposer.pending = self.told, self.pending  # one history, seen by both
        self.pool, self.initial, self.wl_depth = pool, initial, wl_depth

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        self.proposer.trials = self.trials
        rewards = {c: r for c, r in self.rewards().items() if self.told[c].state != "failed"}
        if len(self.told) < self.initial or len(rewards) < 2:
            return self.proposer.propose(n, rng, known)
        pool = self.candidates(max(n, self.pool), rng, known, rewards)
        gains = expected_improvement(self.space, list(rewards), np.array(list(rewards.values())), pool, self.wl_depth)
        return [pool[i] for i in np.argsort(-gains, kind="stable")[:n]]

    def candidates(self, size: int, rng: np.random.Generator, known: set[Choices], rewards: dict[Choices, float]) -> list[Choices]:
        """The pool: the proposer's half, then neighbours of the trials with the best rewards."""
        size = min(size, self.space.size - len(known))
        own = self.proposer.propose((size + 1) // 2, rng, known)
        parents = sorted(rewards, key=lambda c: -rewards[c])[:PARENTS]
        return own + draw_distinct(size - len(own), self.space, {*known, *own}, rng, [lambda: neighbour(self.space, parents, rng)])


def neighbour(space: Space, parents: Sequence[Choices], rng: np.random.Generator) -> Choices:
    """One of ``parents`` with one slot, and each other with falling probability, drawn anew; every second time it is first crossed with another parent."""
    first, second = (parents[i] for i in rng.integers(len(parents), size=2))
    share = rng.random() if rng.random() < 0.5 else 1.0
    child = [a if rng.random() < share else b for a, b in zip(first, second, strict=True)]
    for slot in rng.permutation(len(child))[: rng.geometric(0.5)]:
        child[slot] = space.draw_slot(int(slot), rng)
    return tuple(child)


def expected_improvement(space: Space, seen: Sequence[Choices], rewards: np.ndarray, pool: Sequence[Choices], wl_depth: int) -> np.ndarray:
    """Expected improvement of each candidate of ``pool`` over the best reward, in standard deviations of ``rewards``.

    The depth of the kernel, 1 to ``wl_depth``, is the one with the highest marginal likelihood. skopt minimises, so it is given -reward.
    """
    from skopt.acquisition import gaussian_ei

    histograms = [wl_histograms(space.graph(choices), wl_depth) for choices in (*seen, *pool)]
    targets = -(rewards - rewards.mean()) / (rewards.std() or 1.0)
    fits = []
    for depth in range(1, wl_depth + 1):
        features = wl_features(histograms, depth)
        model = fit_gp(features[: len(seen)], targets)
        fits.append((model.log_marginal_likelihood_value_, -depth, model, features[len(seen) :]))
    _, _, model, features = max(fits, key=lambda fit: fit[:2])
    return gaussian_ei(features, model, y_opt=targets.min(), xi=0.0)


def fit_gp(features: np.ndarray, targets: np.ndarray) -> Any:
    """skopt's Gaussian process on unit-length features (trials, labels), with a linear kernel (so: the normalised WL kernel), a scale and noise by marginal likelihood."""
    from skopt.learning import GaussianProcessRegressor
    from skopt.learning.gaussian_process.kernels import ConstantKernel, DotProduct, WhiteKernel

    kernel = ConstantKernel(1.0, SCALE_BOUNDS) * DotProduct(0.0, "fixed") + WhiteKernel(NOISE, NOISE_BOUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a value at its bound is what bounds are for
        return GaussianProcessRegressor(kernel, alpha=1e-10, noise="gaussian").fit(features, targets)
