"""The learning-curve rule against scipy's regression and by its error rate; curves of any number of steps; a real training that ends early."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress, t

from stages.config import Config
from stages.schemes import uniform_scheme
from stages.search import Trial
from stages.search.early_stop import ENOUGH, POINTS, CurveKeeper, StopRule, line, stop_rule


def trial(i: int, losses, accuracy: float, **more) -> Trial:
    return Trial((i,), accuracy, more.pop("latency_ms", 0.5), curve=tuple((2 * (k + 1) / POINTS, float(loss)) for k, loss in enumerate(losses)), **more)


def fleet(count: int, rng: np.random.Generator, noise: float) -> list[Trial]:
    """Accuracy falls with the logarithm of the loss, with normal noise."""
    x = rng.normal(-1.0, 0.4, count)
    return [trial(i, [np.exp(v)] * POINTS, 0.9 - 0.1 * v + noise * rng.normal()) for i, v in enumerate(x)]


def test_the_prediction_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    points = [(float(np.exp(x)), float(0.9 - 0.1 * x + 0.01 * rng.normal())) for x in rng.normal(size=12)]
    x, y = np.log([p[0] for p in points]), np.array([p[1] for p in points])
    fitted, found = linregress(x, y), line(points)
    for loss in (0.2, 1.0, 3.0):
        residual = y - fitted.intercept - fitted.slope * x
        scale = np.sqrt((residual**2).sum() / 10 * (1 + 1 / 12 + (np.log(loss) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()))
        expected = t.cdf((0.95 - fitted.intercept - fitted.slope * np.log(loss)) / scale, 10)
        assert found.probability_below(loss, 0.95) == pytest.approx(expected, rel=1e-6)


def test_stops_the_hopeless_and_only_them():
    rule = stop_rule(fleet(12, np.random.default_rng(1), 0.002), 1.0, 0.95)
    assert rule.hopeless([3.0, 3.0]) and rule.hopeless([3.0] * 5)
    assert not rule.hopeless([0.05, 0.05])
    assert not rule.hopeless([3.0])  # too early
    assert not rule.hopeless([3.0] * POINTS)  # too late to save anything


def test_waits_for_whole_trainings_and_a_feasible_one():
    known = fleet(ENOUGH, np.random.default_rng(2), 0.01)
    assert stop_rule(known, 1.0, 0.95) is not None
    assert stop_rule(known[1:], 1.0, 0.95) is None
    assert stop_rule(known, 0.1, 0.95) is None  # none meets this budget
    half = trial(99, [0.5] * 3, 0.4, stopped=True)
    failed = Trial((98,), state="failed", error="out of memory")
    assert stop_rule([*known[1:], half, failed], 1.0, 0.95) is None
    assert stop_rule([*known, half, failed], 1.0, 0.95) == stop_rule(known, 1.0, 0.95)


def test_a_curve_that_says_nothing_stops_nothing():
    same = [trial(i, [0.5] * POINTS, 0.9 + 0.001 * i) for i in range(8)]
    assert not stop_rule(same, 1.0, 0.95).hopeless([9.0, 9.0])
    upside_down = [trial(i, [0.1 * (i + 1)] * POINTS, 0.9 + 0.01 * i) for i in range(8)]
    assert not stop_rule(upside_down, 1.0, 0.95).hopeless([9.0, 9.0])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_false_stops_are_as_rare_as_promised(confidence):
    """Of candidates that would become the best, at most the share 1 - confidence is stopped when curves and accuracies are as the rule assumes."""
    rng, stopped, winners = np.random.default_rng(3), 0, 0
    for _ in range(1500):
        *known, new = fleet(11, rng, 0.02)
        rule = stop_rule(known, 1.0, confidence)
        if new.accuracy > rule.best:
            winners += 1
            stopped += rule.hopeless([loss for _, loss in new.curve[:4]])
    assert winners > 100 and stopped / winners <= 1 - confidence


@given(total=st.integers(1, 200), epochs=st.floats(0.1, 10))
def test_curves_cover_the_training(total, epochs):
    keeper = CurveKeeper(epochs, None)
    assert [keeper.step(step, total, float(step)) for step in range(1, total + 1)] == [False] * total
    assert len(keeper.curve) == min(total, POINTS) and keeper.curve[-1][0] == pytest.approx(epochs)
    ends = [round(done / epochs * total) for done, _ in keeper.curve]
    for begin, end, (_, loss) in zip([0, *ends], ends, keeper.curve, strict=False):
        assert loss == pytest.approx((begin + 1 + end) / 2)  # the mean of begin+1 .. end


def test_the_end_of_a_training_is_no_stop():
    rule = StopRule(tuple(line([(0.1, 0.9), (0.2, 0.8), (0.3, 0.7), (0.4, 0.65)]) for _ in range(POINTS - 1)), 0.99, 0.5)
    keeper = CurveKeeper(2.0, rule)
    assert [keeper.step(step, 16, 5.0) for step in (1, 2)] == [False, True] and keeper.stopped  # the first point, for this rule has no earliest
    last = CurveKeeper(2.0, StopRule((None,) * (POINTS - 1), 0.99, 0.5))
    assert [last.step(step, 16, 5.0) for step in range(1, 17)] == [False] * 16 and not last.stopped


def test_a_real_training_ends_early_and_is_labelled():
    from dataclasses import replace

    from stages.graph import trace
    from stages.search.accuracy import FastEvaluation
    from stages.search.candidate import Candidates
    from stages.tasks import make_task

    torch.set_num_threads(1)
    config = Config()
    config = replace(config, task=replace(config.task, model="npas_tiny", train_device="cpu"), search_scheme=replace(config.search_scheme, train_limit=512, epochs=1.0))
    task = make_task(config.task)
    network = task.model().eval()
    graph = trace(network, task.example())
    scheme = uniform_scheme(graph, "block-punched", 3.0, 8)
    evaluation = FastEvaluation(config, task, Candidates(network, graph))
    whole = evaluation.train(scheme)
    assert not whole.stopped and len(whole.curve) == POINTS and whole.curve[-1][0] == 1.0
    assert evaluation.train(scheme) == whole  # the same images in the same order
    certain = line([(0.001, 0.99), (0.002, 0.98), (0.003, 0.97), (0.004, 0.965)])
    early = evaluation.train(scheme, StopRule((None, None, certain, *(None,) * 4), 1.0, 0.9))
    assert early.stopped and early.curve == whole.curve[:3]
    assert 0 <= evaluation.one_shot(scheme) <= 1
    taught = replace(config, search_scheme=replace(config.search_scheme, distill=1.0))
    distilled = FastEvaluation(taught, task, Candidates(network, graph)).train(scheme)
    assert distilled.curve != whole.curve and distilled.curve[-1][1] < distilled.curve[0][1]  # towards the teacher's outputs, whatever these are worth
