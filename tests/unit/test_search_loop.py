"""The loop against recorded tables: survey, overlap, journal, resume, failures, budget."""

from __future__ import annotations

import json
import threading

import pytest

from stages.errors import ArtifactError, DeviceLost, Interrupted, NpasError, RunnerCrashed, UsageError
from stages.search import Space, Trial, make_sampler
from stages.search.evaluator import Evaluator, Inline, Rules, Trained
from stages.search.lines import milliseconds
from stages.search.loop import search
from stages.search.trials import Journal, Timing, pareto

SLOTS = [(1.0, 2.0, 3.0, 5.0)] * 4
FIRST = [(rate,) * 4 for rate in (5.0, 3.0, 2.0, 1.0)]
SPACE = Space(SLOTS, first=FIRST)
RULES = Rules(budget_ms=1.0, trials=20, batch=4, margin=0.1)


class Lines:
    """A Progress that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def start(self, description, total=None):
        pass

    def advance(self, line=""):
        if line:
            self.lines.append(line)

    def finish(self):
        pass


def ms(choices) -> float:
    return sum(0.5 / rate for rate in choices)


def top1(choices) -> float:
    return 0.97 - sum(h * (rate - 1) for h, rate in zip((0.001, 0.02, 0.002, 0.03), choices, strict=True))


class Table(Evaluator):
    """A recorded table that also records who asks; ``on`` maps ("accuracy", n) to what happens at the n-th call."""

    def __init__(self, on=None, latency=ms, confirm=ms):
        self.__dict__["calls"] = {"accuracy": [], "latency": [], "confirm": []}
        self.__dict__["on"] = on or {}
        train = self.act("accuracy", top1)
        super().__init__(
            Inline(lambda c, rule: Trained(train(c))),
            self.act("latency", lambda c: Timing(latency(c))),
            self.act("confirm", lambda c: t if isinstance(t := confirm(c), Timing) else Timing(t)),
            top1,
        )

    def act(self, name, value):
        def call(choices):
            self.calls[name].append(choices)
            event = self.on.get((name, len(self.calls[name])))
            if event:
                raise event
            return value(choices)

        return call


def simple(accuracy, latency) -> Evaluator:
    return Evaluator(Inline(lambda c, rule: Trained(accuracy(c))), latency, latency, accuracy)


def run(tmp_path, table=None, rules=RULES, space=SPACE, progress=None, name="npas"):
    with Journal(tmp_path / "journal.jsonl", space) as journal:
        make = lambda s: make_sampler(name, s, rules.trials, rules.budget_ms, 0, **({"pool": 20, "initial": 5} if name in ("npas", "bo") else {}))  # noqa: E731
        return search(space, make, table or Table(), journal, rules, progress or Lines())


def test_finds_a_candidate_within_the_budget_and_says_each_trial(tmp_path):
    lines = Lines()
    outcome = run(tmp_path, progress=lines)
    assert len(outcome.trials) == 20 == len({t.choices for t in outcome.trials})
    assert outcome.best.latency_ms <= 1.0
    assert outcome.best.accuracy == max(t.accuracy for t in outcome.trials if t.meets(1.0))
    assert outcome.best.accuracy >= top1((2.0,) * 4)  # the best uniform one
    assert lines.lines[0] == "trial 1/20  top1 91.7  1.00 ms <= 1.00  best #1 91.7"
    assert any("not trained" in line and " > 1.00" in line for line in lines.lines)


def test_beats_every_uniform_candidate(tmp_path):
    assert run(tmp_path, rules=Rules(1.0, 80, 4)).best.accuracy > top1((2.0,) * 4) + 0.01


def test_hopeless_candidates_are_not_trained(tmp_path):
    table = Table()
    outcome = run(tmp_path, table)
    assert all(ms(c) <= 1.1 for c in table.calls["accuracy"])
    skipped = [t for t in outcome.trials if t.latency_ms > 1.1]
    assert skipped and all(t.state == "infeasible" and t.accuracy is None for t in skipped)
    near = [t for t in outcome.trials if 1.0 < t.latency_ms <= 1.1]
    assert all(t.state == "infeasible" and t.accuracy is not None for t in near)


@pytest.mark.parametrize("free", [0, 3, 500])
def test_candidates_that_are_only_measured_do_not_count_up_to_a_limit(tmp_path, free):
    lines = Lines()
    outcome = run(tmp_path, rules=Rules(1.0, 20, 4, 0.1, None, free), progress=lines)
    slow = sum(t.only_measured for t in outcome.trials)
    assert len(outcome.trials) == 20 + min(free, slow) and (slow > 3 or free < 3)
    assert lines.lines[-1].startswith("trial 20/20" if not free else f"trial {len(outcome.trials)} (20/20)")
    longer = run(tmp_path, rules=Rules(1.0, 26, 4, 0.1, None, free))  # and a longer search of the same journal goes on
    assert longer.trials[: len(outcome.trials)] == outcome.trials and len(longer.trials) == 26 + min(free, sum(t.only_measured for t in longer.trials))


def test_each_candidate_is_measured_and_trained_once(tmp_path):
    table = Table()
    run(tmp_path, table)
    assert all(len(calls) == len(set(calls)) for calls in table.calls.values())


def test_the_first_trials_bracket_the_budget(tmp_path):
    assert [t.choices for t in run(tmp_path).trials[:3]] == [(2.0,) * 4, (3.0,) * 4, (1.0,) * 4]


def test_budget_below_the_fastest_candidate_is_told_before_any_training(tmp_path):
    table = Table()
    outcome = run(tmp_path, table, Rules(0.3, 20))
    assert (outcome.best, outcome.trials, outcome.fastest_ms) == (None, (), pytest.approx(0.4))
    assert not table.calls["accuracy"]


def test_latency_of_the_next_candidate_is_measured_while_one_trains(tmp_path):
    """Training of the first candidate waits until the latency of the second is known: it deadlocks unless they overlap."""
    measured = threading.Event()
    count = []

    def latency(choices):
        count.append(choices)
        if len(count) == 2:
            measured.set()
        return Timing(0.5)

    def accuracy(choices):
        assert measured.wait(20)
        return 0.5

    evaluator = simple(accuracy, latency)
    assert len(run(tmp_path, evaluator, Rules(1.0, 4, 4), Space(SLOTS)).trials) == 4


@pytest.mark.parametrize("where", [("accuracy", 1), ("accuracy", 7), ("latency", 2), ("latency", 9), ("confirm", 1)])
@pytest.mark.parametrize("name", ["npas", "ql", "random"])
def test_interrupted_and_continued_equals_undisturbed(tmp_path, where, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = run(tmp_path / "a", name=name)
    first, second = Table({where: KeyboardInterrupt()}), Table()
    with pytest.raises(Interrupted) as stopped:
        run(tmp_path / "b", first, name=name)
    assert stopped.value.exit_code == 130
    assert run(tmp_path / "b", second, name=name) == undisturbed
    trained = first.calls["accuracy"][: len(first.calls["accuracy"]) - (where[0] == "accuracy")] + second.calls["accuracy"]
    assert len(trained) == len(set(trained))  # nothing finished was trained again


def test_a_finished_search_evaluates_nothing_again(tmp_path):
    before, table = run(tmp_path), Table()
    assert run(tmp_path, table) == before
    assert table.calls == {"accuracy": [], "latency": [], "confirm": []}


def test_raising_trials_continues(tmp_path):
    short, table = run(tmp_path), Table()
    longer = run(tmp_path, table, Rules(1.0, 30, 4, 0.1))
    assert [t.choices for t in longer.trials[:20]] == [t.choices for t in short.trials]
    assert len(longer.trials) == 30
    assert not set(table.calls["accuracy"]) & {t.choices for t in short.trials}


def test_failures_are_rows_and_never_the_result(tmp_path):
    lines = Lines()
    table = Table({("accuracy", 2): RuntimeError("out\nof memory"), ("latency", 8): RunnerCrashed("The runner was killed by SIGSEGV (139).")})
    outcome = run(tmp_path, table, progress=lines)
    failed = [t for t in outcome.trials if t.state == "failed"]
    assert [t.error for t in failed] == ["RuntimeError: out of memory", "The runner was killed by SIGSEGV (139)."]
    assert failed[0].latency_ms == pytest.approx(ms(failed[0].choices))
    assert len(outcome.trials) == 20 and outcome.best.state == "complete"
    assert any("failed: RuntimeError: out of memory" in line for line in lines.lines)


def test_an_accuracy_that_is_not_a_number_is_a_failed_trial(tmp_path):
    evaluator = simple(lambda c: float("nan") if c == (3.0,) * 4 else 0.5, lambda c: Timing(ms(c)))
    assert [t.error for t in run(tmp_path, evaluator).trials if t.state == "failed"] == ["top1 is nan"]


def test_stops_when_everything_fails_and_continues_afterwards(tmp_path):
    broken = Table({("accuracy", i): RuntimeError("disk full") for i in range(1, 9)})
    with pytest.raises(NpasError, match="all failed.*disk full"):
        run(tmp_path, broken)
    assert len(run(tmp_path).trials) == 20


def test_a_lost_device_stops_the_search_and_loses_nothing(tmp_path):
    with pytest.raises(DeviceLost):
        run(tmp_path, Table({("latency", 9): DeviceLost("gone")}))
    assert len(run(tmp_path).trials) == 20


def test_confirmation_falls_to_the_next_best(tmp_path):
    (tmp_path / "a").mkdir()
    lines, best = Lines(), run(tmp_path / "a").best
    outcome = run(tmp_path, Table(confirm=lambda c: 1.2 if c == best.choices else ms(c)), progress=lines)
    assert any("took 1.20 ms when measured again" in line for line in lines.lines)
    assert outcome.best.choices != best.choices and outcome.best.accuracy <= best.accuracy
    demoted = next(t for t in outcome.trials if t.choices == best.choices)
    assert (demoted.state, demoted.latency_ms) == ("infeasible", 1.2)


def test_a_sure_candidate_goes_before_one_that_may_exceed_the_budget(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    best = run(tmp_path / "a").best
    wide = lambda c: Timing(ms(c), None, (ms(c), RULES.budget_ms + 0.1))  # noqa: E731
    outcome = run(tmp_path / "b", Table(confirm=lambda c: wide(c) if c == best.choices else ms(c)))
    assert outcome.best.choices != best.choices and outcome.best.accuracy <= best.accuracy
    assert next(t for t in outcome.trials if t.choices == best.choices).state == "complete"
    assert run(tmp_path, Table(confirm=wide)).best.choices == best.choices  # where none is sure, the likely one


def test_a_crash_in_the_confirmation_falls_to_the_next_best_too(tmp_path):
    outcome = run(tmp_path, Table({("confirm", 1): RunnerCrashed("The runner was killed by SIGSEGV (139).")}))
    assert outcome.best.state == "complete"
    assert sum(t.state == "failed" for t in outcome.trials) == 1


def test_exhausted_space_ends_early(tmp_path):
    small = Space([(1.0, 5.0)] * 2)
    outcome = run(tmp_path, simple(lambda c: 0.5, lambda c: Timing(0.5)), RULES, small)
    assert len(outcome.trials) == 4


def test_journal_drops_a_torn_line_and_refuses_other_damage(tmp_path):
    run(tmp_path)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "trial", "at": [0, 1')
    assert len(run(tmp_path).trials) == 20
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'{"kind": "ask"', b'{"kind" "ask"', 1))
    with pytest.raises(ArtifactError, match="damaged"):
        run(tmp_path)


def test_journal_is_plain_json_lines(tmp_path):
    run(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"note", "timing", "ask", "trial", "confirmed"}
    assert sum(r["kind"] == "trial" for r in records) == 20


def test_journal_cut_at_any_line_gives_the_same_search(tmp_path):
    whole = run(tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines), 7):
        path.write_bytes(b"".join(lines[:cut]))
        assert run(tmp_path) == whole


def test_journal_of_another_space_and_a_second_search_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ArtifactError, match="another search space"):
        Journal(tmp_path / "journal.jsonl", Space([(1.0, 2.0)] * 4))
    with Journal(tmp_path / "journal.jsonl", SPACE), pytest.raises(UsageError, match="running"):
        Journal(tmp_path / "journal.jsonl", SPACE)


def test_pareto_by_hand():
    trials = [Trial((0,), 0.9, 1.0), Trial((1,), 0.8, 0.5), Trial((2,), 0.8, 1.0), Trial((3,), None, 0.1, "infeasible"), Trial((4,), 0.9, 1.0)]
    assert pareto(trials) == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("value", "budget", "text"), [(0.6234, 0.7, "0.623"), (0.03124, 0.04, "0.0312"), (6.62, 6.7, "6.62"), (66.2, 67, "66.20"), (1.0, 1.0, "1.00")]
)
def test_milliseconds(value, budget, text):
    assert milliseconds(value, budget) == text
