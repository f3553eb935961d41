"""When a candidate's training may end early: a prediction of its final accuracy from its learning curve. Imports space; numpy and scipy in functions.

The rule of Baker et al. ("Accelerating Neural Architecture Search using Performance Prediction", 2018), whose agent NPAS's is modelled on: from the candidates trained to the end, regress the final
accuracy on the curve so far, and stop when the new one stays below the best with a probability of at least ``confidence``. The curve is the training loss: it is there for
nothing, and as every candidate sees the same images in the same order, its noise is common to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stages.search.space import Trial

POINTS = 8  # of a curve: the mean loss of each eighth of the training
EARLIEST = 2  # no decision before so many of them: the loss of the first steps is that of one-shot pruning
ENOUGH = 6  # curves from which a line may be drawn

Curve = tuple[tuple[float, float], ...]  # (epochs done, mean training loss since the point before)


@dataclass(frozen=True)
class Line:
    """Final accuracy as a linear function of the logarithm of the loss at one point, from ``count`` curves, with the deviation of its residuals."""

    slope: float
    mean_x: float
    mean_y: float
    spread: float  # sum of the squares of x - mean_x
    deviation: float
    count: int

    def probability_below(self, loss: float, accuracy: float) -> float:
        """Probability that a candidate with this loss ends below ``accuracy``: Student's t with the variance of a prediction."""
        from scipy.special import stdtr  # scipy.stats.t.cdf, which takes a hundred times as long

        x = math.log(loss)
        predicted = self.mean_y + self.slope * (x - self.mean_x)
        scale = self.deviation * math.sqrt(1 + 1 / self.count + (x - self.mean_x) ** 2 / self.spread)
        return float(stdtr(self.count - 2, (accuracy - predicted) / scale))


@dataclass(frozen=True)
class StopRule:
    """One line a point of the curve, and the accuracy that is to be beaten. Plain values, for it travels to the workers."""

    lines: tuple[Line | None, ...]
    best: float
    confidence: float

    def hopeless(self, losses: Sequence[float]) -> bool:
        """Is a candidate with the curve ``losses`` so far (one value a point) to be given up?"""
        point = len(losses) - 1
        line = self.lines[point] if point < len(self.lines) else None
        return line is not None and losses[-1] > 0 and line.probability_below(losses[-1], self.best) >= self.confidence


def stop_rule(trials: Sequence[Trial], budget_ms: float | None, confidence: float) -> StopRule | None:
    """The rule for candidates proposed after ``trials``; None while too few of these were trained to the end or none of them meets the budget."""
    whole = [t for t in trials if t.accuracy is not None and not t.stopped and len(t.curve) == POINTS]
    feasible = [t.accuracy for t in whole if t.meets(budget_ms) and t.accuracy is not None]
    if len(whole) < ENOUGH or not feasible:
        return None
    lines = [None if point < EARLIEST - 1 else line([(t.curve[point][1], t.accuracy or 0.0) for t in whole]) for point in range(POINTS - 1)]
    return StopRule(tuple(lines), max(feasible), confidence)


def line(points: Sequence[tuple[float, float]]) -> Line | None:
    """Least squares through (loss, final accuracy); None where the losses are all the same, or a lower loss doesn't mean a higher accuracy."""
    import numpy as np

    x, y = np.log([max(loss, 1e-12) for loss, _ in points]), np.array([accuracy for _, accuracy in points])
    spread = float(((x - x.mean()) ** 2).sum())
    if spread == 0:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    residuals = y - y.mean() - slope * (x - x.mean())
    deviation = max(math.sqrt(float((residuals**2).sum()) / (len(points) - 2)), 1e-6)
    return Line(slope, float(x.mean()), float(y.mean()), spread, deviation, len(points)) if slope < 0 else None


class CurveKeeper:
    """Collects a training's curve step by step, and says when the rule ends it."""

    def __init__(self, epochs: float, rule: StopRule | None):
        self.epochs, self.rule = epochs, rule
        self.curve: list[tuple[float, float]] = []
        self.stopped = False
        self._losses: list[float] = []

    def step(self, step: int, total: int, loss: float) -> bool:
        """Take the loss of step number ``step`` (from 1) of ``total``; True when the training is to end here."""
        self._losses.append(loss)
        if step * POINTS // total > (step - 1) * POINTS // total:  # fewer than POINTS steps make a curve of fewer points, and no rule reads that
            self.curve.append((self.epochs * step / total, sum(self._losses) / len(self._losses)))
            self._losses.clear()
            self.stopped = step < total and self.rule is not None and self.rule.hopeless([loss for _, loss in self.curve])
        return self.stopped
