"""Many trainers, and the order in which they finish: the same search as with one. Lost workers, results that come out of turn, early stopping."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from test_search_loop import FIRST, SLOTS, Lines, ms, run, top1

from stages.errors import NpasError, WorkerLost
from stages.search import Space
from stages.search.early_stop import POINTS
from stages.search.evaluator import Evaluator, Inline, Rules, Trained
from stages.search.trials import Timing

SPACE = Space(SLOTS, first=FIRST)
RULES = Rules(1.0, 24, 3, 0.1)
STOPPING = Rules(1.0, 40, 3, 0.1, 0.95)


def train(choices, rule) -> Trained:
    """A recorded curve, which the rule may end."""
    curve, losses = [], []
    for point in range(1, POINTS + 1):
        losses.append((1.01 - top1(choices)) * (2 - point / POINTS))
        curve.append((2 * point / POINTS, losses[-1]))
        if point < POINTS and rule is not None and rule.hopeless(losses):
            return Trained(top1(choices) - 0.05, tuple(curve), True)
    return Trained(top1(choices), tuple(curve))


class Shuffled:
    """``size`` trainers that finish in a random order; ``lost`` maps the n-th answer to what comes instead."""

    def __init__(self, size: int, seed: int, lost=(), stop_after=10**9):
        self.size, self.random, self.lost, self.stop_after = size, random.Random(seed), dict(lost), stop_after
        self.waiting, self.answers = [], 0

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def submit(self, key, request):
        self.waiting.append((key, request))

    def next(self, timeout=None):
        if timeout is not None and self.random.random() < 0.5:
            raise TimeoutError
        key, request = self.waiting.pop(self.random.randrange(min(self.size, len(self.waiting))))
        self.answers += 1
        if self.answers > self.stop_after:
            raise KeyboardInterrupt
        return key, self.lost.get(self.answers) or train(*request)


def evaluator(trainers) -> Evaluator:
    timing = lambda choices: Timing(ms(choices))  # noqa: E731
    return Evaluator(trainers, timing, timing, top1)


def asked(path) -> list:
    records = [json.loads(line) for line in (path / "journal.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == "ask"]


@pytest.mark.parametrize(("rules", "name"), [(RULES, "npas"), (RULES, "ql"), (STOPPING, "random")])
def test_the_same_search_for_any_number_of_workers(tmp_path, rules, name):
    (tmp_path / "1").mkdir()
    one = run(tmp_path / "1", evaluator(Inline(train)), rules, SPACE, name=name)
    for size in (2, 5):
        folder = tmp_path / str(size)
        folder.mkdir()
        assert run(folder, evaluator(Shuffled(size, size)), rules, SPACE, name=name) == one
        assert asked(folder) == asked(tmp_path / "1")


def test_candidates_are_proposed_a_batch_ahead(tmp_path):
    run(tmp_path, evaluator(Inline(train)), RULES, SPACE)
    assert [(r["told"], r["n"]) for r in asked(tmp_path)] == [(0, 3), (0, 3), *((told, 3) for told in range(3, 19, 3))]


def test_early_stopping_labels_trials_saves_training_and_keeps_the_best(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopping").mkdir()
    lines = Lines()
    outcome = run(tmp_path / "stopping", evaluator(Inline(train)), STOPPING, SPACE, lines, "random")
    stopped = [t for t in outcome.trials if t.stopped]
    assert stopped and all(len(t.curve) < POINTS and t.accuracy == pytest.approx(top1(t.choices) - 0.05) for t in stopped)
    assert all(len(t.curve) == POINTS for t in outcome.trials if t.accuracy is not None and not t.stopped)
    assert not outcome.best.stopped
    assert max(top1(t.choices) for t in stopped if t.latency_ms <= 1.0) < outcome.best.accuracy  # none was stopped falsely
    assert any("(stopped after" in line for line in lines.lines)


def test_a_stopped_trial_wins_only_where_nothing_else_is_feasible(tmp_path):
    first = (2.0,) * 4  # the first trial, said to be stopped although it is the most accurate

    def odd(choices, rule):
        return Trained(0.99, (), True) if choices == first else Trained(0.5)

    (tmp_path / "a").mkdir()
    assert run(tmp_path / "a", evaluator(Inline(odd)), RULES, SPACE).best.choices != first
    outcome = run(tmp_path, evaluator(Inline(lambda c, rule: Trained(0.5, (), True))), RULES, SPACE)
    assert outcome.best.stopped


def test_a_lost_worker_costs_nothing_the_first_time_and_its_trial_the_second(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    undisturbed = run(tmp_path / "a", evaluator(Inline(train)), RULES, SPACE)
    lines, lost = Lines(), WorkerLost("A worker process was killed by SIGKILL.")
    assert run(tmp_path / "b", evaluator(Shuffled(2, 0, {2: lost, 7: lost})), RULES, SPACE, lines) == undisturbed
    assert sum("evaluated once more" in line for line in lines.lines) == 2

    class Deadly(Shuffled):
        def next(self, timeout=None):
            key, answer = super().next(timeout)
            return key, (lost if key == (3.0,) * 4 else answer)

    outcome = run(tmp_path / "c", evaluator(Deadly(2, 0)), RULES, SPACE)
    failed = [t for t in outcome.trials if t.state == "failed"]
    assert [(t.choices, t.error) for t in failed] == [((3.0,) * 4, lost.message)]
    assert len(outcome.trials) == 24


@pytest.mark.parametrize("free", [0, 12])
@pytest.mark.parametrize("stop_after", [1, 2, 5, 12])
def test_results_out_of_turn_survive_an_interruption(tmp_path, stop_after, free):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rules = replace(STOPPING, free=free)
    undisturbed = run(tmp_path / "a", evaluator(Inline(train)), rules, SPACE, name="random")
    first = Shuffled(3, stop_after, stop_after=stop_after)
    with pytest.raises(NpasError):
        run(tmp_path / "b", evaluator(first), rules, SPACE, name="random")
    again = Shuffled(3, 0)
    assert run(tmp_path / "b", evaluator(again), rules, SPACE, name="random") == undisturbed
    trained = sum(t.accuracy is not None for t in undisturbed.trials)
    assert again.answers == trained - stop_after  # whatever was finished is not trained again


def test_lowered_and_raised_trials_continue(tmp_path):
    short = run(tmp_path, evaluator(Inline(train)), RULES, SPACE)
    fewer = run(tmp_path, evaluator(Inline(None)), Rules(1.0, 10, 3, 0.1), SPACE)
    more = run(tmp_path, evaluator(Shuffled(3, 1)), Rules(1.0, 30, 3, 0.1), SPACE)
    assert fewer == short and len(more.trials) == 30 and more.trials[:24] == short.trials
