"""npas and bo: Gaussian processes with a Weisfeiler-Lehman kernel screen a pool of proposals by expected improvement (NPAS, section 5.2; NAS-BOWL). Imports sampler, wl; skopt in functions.

Two processes, not one on the reward as in NPAS: one on accuracy, one on the logarithm of latency. A reward mixes a kink of size alpha with accuracies that differ by a
percent, and a process standardised over both sees the kink alone; the latency is measured anyway, also of what isn't trained. What is ranked is the expected improvement
times the probability of meeting the budget (constrained Bayesian optimisation, Gardner et al. 2014).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices, Space, Trial
from stages.search.wl import wl_features, wl_histograms

NOISE, NOISE_BOUNDS = 1e-3, (1e-5, 1e-2)  # variance of standardised targets (NAS-BOWL)
SCALE_BOUNDS = (0.1, 100.0)  # prior variance: unlike NAS-BOWL's graphs, ours share most labels, so small angles must carry the whole spread
PARENTS, ABOVE = 5, 2  # parents of the pool's neighbours: the best trials, and the fastest of those over the budget
STEP = 0.75  # share of a neighbour's changes that are small steps, not draws from the whole slot


class Screened(Sampler):
    """A proposer's pool, screened: of ``pool`` candidates those that promise the most are asked.

    Half of the pool are the proposer's; half are neighbours of good trials (NAS-BOWL's mutations, and crossings of two): with more slots than trials an
    independent draw seldom comes near the budget, while a step from something that does is a real proposal. The first ``initial`` trials aren't screened.
    Failed trials never reach the Gaussian processes.
    """

    def __init__(self, proposer: Callable[..., Sampler], *args: Any, alpha: float = 2.0, pool: int = 100, initial: int = 6, wl_depth: int = 3, **options: Any):
        super().__init__(*args, alpha=alpha)
        self.proposer = proposer(*args, alpha=alpha, **options)
        self.proposer.told, self.proposer.pending = self.told, self.pending  # one history, seen by both
        self.pool, self.initial, self.wl_depth = pool, initial, wl_depth

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        self.proposer.trials = self.trials
        measured = [trial for trial in self.told.values() if trial.state != "failed"]
        if len(self.told) < self.initial or not measured:
            return self.proposer.propose(n, rng, known)
        pool = self.candidates(max(n, self.pool), rng, known)
        gains = promise(self.space, measured, pool, self.budget_ms, self.wl_depth)
        return [pool[i] for i in np.argsort(-gains, kind="stable")[:n]]

    def candidates(self, size: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:
        """The pool: the proposer's half, then neighbours."""
        size = min(size, self.space.size - len(known))
        own, parents = self.proposer.propose((size + 1) // 2, rng, known), self.parents()
        return own + draw_distinct(size - len(own), self.space, {*known, *own}, rng, [lambda: neighbour(self.space, parents, rng)])

    def parents(self) -> list[Choices]:
        """The trials with the best rewards, and those that miss the budget by the least: a crossing of the two kinds lies near the budget."""
        rewards = {c: r for c, r in self.rewards().items() if self.told[c].state != "failed"}
        best = sorted(rewards, key=lambda c: -rewards[c])[:PARENTS]
        above = sorted((c for c in rewards if self.penalty(self.told[c].latency_ms) > 0), key=lambda c: self.told[c].latency_ms or 0.0)
        return best + [c for c in above[:ABOVE] if c not in best]


def neighbour(space: Space, parents: Sequence[Choices], rng: np.random.Generator) -> Choices:
    """One of ``parents``, every second time crossed with another, in which one slot, and each further one with half the probability, is changed."""
    first, second = (parents[i] for i in rng.integers(len(parents), size=2))
    share = rng.random() if rng.random() < 0.5 else 1.0
    child = [a if rng.random() < share else b for a, b in zip(first, second, strict=True)]
    for slot in (int(i) for i in rng.permutation(len(child))[: rng.geometric(0.5)]):
        child[slot] = space.step(slot, child[slot], rng) if rng.random() < STEP else space.draw_slot(slot, rng)
    return tuple(child)


def promise(space: Space, measured: Sequence[Trial], pool: Sequence[Choices], budget_ms: float | None, wl_depth: int) -> np.ndarray:
    """For each candidate of ``pool``: expected improvement of accuracy over the best feasible trial, times the probability to meet the budget.

    Without a feasible trial the probability alone counts: the first aim is to get under the budget.
    """
    histograms = [wl_histograms(space.graph(choices), wl_depth) for choices in (*(t.choices for t in measured), *pool)]
    trained = [i for i, t in enumerate(measured) if t.accuracy is not None]
    feasible = np.ones(len(pool))
    if budget_ms is not None:
        model = Surrogate(histograms, range(len(measured)), [np.log(t.latency_ms or np.nan) for t in measured], wl_depth)
        feasible = model.probability_below(np.log(budget_ms), range(len(measured), len(histograms)))
    meeting = [i for i in trained if measured[i].meets(budget_ms)]
    if not meeting:
        return feasible
    model = Surrogate(histograms, trained, [-(measured[i].accuracy or 0.0) for i in trained], wl_depth)
    return feasible * model.improvement(meeting, range(len(measured), len(histograms)))


class Surrogate:
    """A Gaussian process on some of the candidates whose WL histograms are given, for a target that is to be low.

    Targets are standardised. The depth of the kernel, 1 to ``wl_depth``, is the one with the highest marginal likelihood.
    """

    def __init__(self, histograms: Sequence[Sequence[Counter]], rows: Sequence[int], targets: Sequence[float], wl_depth: int):
        self.mean, self.std = float(np.mean(targets)), float(np.std(targets)) or 1.0
        standardised = (np.asarray(targets) - self.mean) / self.std
        fits = []
        for depth in range(1, wl_depth + 1):
            features = wl_features(histograms, depth)
            model = fit_gp(features[list(rows)], standardised)
            fits.append((model.log_marginal_likelihood_value_, -depth, model, features))
        _, _, self.model, self.features = max(fits, key=lambda fit: fit[:2])

    def probability_below(self, limit: float, rows: Sequence[int]) -> np.ndarray:
        """Probability that the target of each row is below ``limit``."""
        from scipy.stats import norm

        mean, std = self.model.predict(self.features[list(rows)], return_std=True)
        return norm.cdf(((limit - self.mean) / self.std - mean) / np.maximum(std, 1e-9))

    def improvement(self, over: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """Expected improvement of each row, in standard deviations, over the lowest of the rows ``over`` as the process sees them (their noise would make a lucky one unbeatable)."""
        from skopt.acquisition import gaussian_ei

        return gaussian_ei(self.features[list(rows)], self.model, y_opt=self.model.predict(self.features[list(over)]).min(), xi=0.0)


def fit_gp(features: np.ndarray, targets: np.ndarray) -> Any:
    """skopt's Gaussian process on unit-length features (trials, labels), with a linear kernel (so: the normalised WL kernel), a scale and noise by marginal likelihood."""
    from skopt.learning import GaussianProcessRegressor
    from skopt.learning.gaussian_process.kernels import ConstantKernel, DotProduct, WhiteKernel

    kernel = ConstantKernel(1.0, SCALE_BOUNDS) * DotProduct(0.0, "fixed") + WhiteKernel(NOISE, NOISE_BOUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a value at its bound is what bounds are for
        return GaussianProcessRegressor(kernel, alpha=1e-10, noise="gaussian").fit(features, targets)
