"""The queue of devices: requests go to whoever is free, a lost or hot device costs nobody else a thing, and a search on several of them finds what a search on one finds."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_search_loop import FIRST, SLOTS, ms, run, top1

from stages.errors import DeviceHot, DeviceLost, DeviceNotFound, Interrupted, NpasError, RunnerCrashed
from stages.search import Space
from stages.search.evaluator import Evaluator, Inline, Rules, Trained
from stages.search.measuring import READY, Measurers
from stages.search.trials import Timing


class Phone:
    """Answers (its name, request); ``faults`` are raised by its next measurements, ``away`` by everything until it is None."""

    def __init__(self, name: str, ms: float = 0.0):
        self.name, self.ms = name, ms
        self.faults: list[NpasError] = []
        self.away: NpasError | None = None
        self.measured: list[object] = []
        self.looks = self.at_once = 0
        self.closed = False

    def call(self, request):
        self.at_once += 1
        assert self.at_once == 1, "a phone measures one candidate at a time"
        try:
            if self.away:
                raise self.away
            if request == READY:
                self.looks += 1
                return None
            time.sleep(self.ms / 1e3)
            if self.faults:
                raise self.faults.pop(0)
            self.measured.append(request)
            return self.name, request
        finally:
            self.at_once -= 1

    def close(self):
        self.closed = True


def lost(name="A"):
    return DeviceLost(f"The link to {name} was cut.")


def opened(*phones, patience=5.0, look=0.01, said=None):
    return Measurers({phone.name: phone for phone in phones}, (said if said is not None else []).append, patience, look)


def test_all_phones_share_one_queue():
    a, b = Phone("A", ms=2), Phone("B", ms=2)
    with opened(a, b) as queue, ThreadPoolExecutor(queue.size) as threads:
        answers = list(threads.map(queue.call, range(20)))
    assert [request for _, request in answers] == list(range(20))
    assert sorted(a.measured + b.measured) == list(range(20)) and a.measured and b.measured
    assert a.closed and b.closed


def test_a_lost_phone_costs_only_that_its_candidate_is_measured_elsewhere():
    a, b, said = Phone("A", ms=1), Phone("B", ms=1), []
    a.faults, a.away = [], lost()
    with opened(a, b, said=said) as queue, ThreadPoolExecutor(queue.size) as threads:
        assert list(threads.map(queue.call, range(10))) == [("B", k) for k in range(10)]
        assert said == ["The link to A was cut. Other phones go on measuring; training goes on."]
        a.away = None
        b.away = lost("B")
        assert queue.call("x") == ("A", "x")
    assert "A measures again" in said


def test_a_single_phone_is_waited_for():
    phone, said = Phone("A"), []
    phone.faults = [lost()]
    with opened(phone, said=said) as queue:
        assert queue.call(1) == ("A", 1)
    assert said == ["The link to A was cut. Measuring waits; training goes on.", "A measures again"] and phone.looks == 1


def test_a_hot_phone_is_waited_for_as_often_as_it_is_hot():
    phone = Phone("A")
    phone.faults = [DeviceHot("A is hot (thermal status 2).")] * 5
    with opened(phone) as queue:
        assert queue.call(1) == ("A", 1)


def test_a_candidate_that_ends_phones_is_a_failed_trial_and_the_next_one_is_measured():
    phone = Phone("A")
    phone.faults = [lost(), lost()]
    with opened(phone) as queue:
        with pytest.raises(NpasError, match="A was lost 2 times while it was measured; the last time: The link to A was cut") as failed:
            queue.call("bad")
        assert type(failed.value) is NpasError  # a trial's failure, not the search's
        assert queue.call("good") == ("A", "good")


def test_what_is_the_candidates_fault_is_raised_at_once():
    phone = Phone("A")
    phone.faults = [RunnerCrashed("SIGILL")]
    with opened(phone) as queue:
        with pytest.raises(RunnerCrashed):
            queue.call(1)
        assert queue.call(2) == ("A", 2) and phone.looks == 0


def test_patience_ends_with_the_reason():
    phone, said = Phone("A"), []
    phone.away = DeviceNotFound("A does not answer.")
    with opened(phone, patience=0.1, said=said) as queue, pytest.raises(DeviceNotFound, match="does not answer"):
        queue.call(1)
    assert len(said) == 1  # not at every look


def test_another_reason_is_told():
    phone, said = Phone("A"), []
    phone.faults = [lost()]
    reasons = [lost(), DeviceHot("A is hot (thermal status 3)."), DeviceHot("A is hot (thermal status 3)."), None]
    call = phone.call

    def looked_at(request):
        if request == READY:
            phone.away = reasons.pop(0)
        return call(request)

    phone.call = looked_at
    with opened(phone, said=said) as queue:
        queue.call(1)
    assert said[1:] == ["A is hot (thermal status 3).", "A measures again"] and not reasons


def test_patience_is_not_spent_while_another_phone_measures():
    a, b = Phone("A", ms=150), Phone("B")
    b.away = lost("B")
    with opened(a, b, patience=0.02) as queue, ThreadPoolExecutor(2) as threads:
        assert [name for name, _ in threads.map(queue.call, range(3))] == ["A"] * 3


def test_closing_lets_everybody_go():
    phone = Phone("A")
    phone.away = lost()
    queue = opened(phone, look=60.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(queue.call, 1)
        time.sleep(0.05)
        queue.close()
        with pytest.raises(Interrupted):
            waiting.result(timeout=5)


def test_a_search_on_three_phones_finds_what_a_search_on_one_finds(tmp_path):
    """Faults included: lost, hot, and whoever is done first."""
    chance = random.Random(0)

    def evaluator(queue: Measurers) -> Evaluator:
        timing = lambda choices: Timing(ms(queue.call(choices)[1]))  # noqa: E731
        return Evaluator(Inline(lambda c, rule: Trained(top1(c))), timing, timing, top1, measurers=queue.size)

    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    with opened(Phone("A")) as queue:
        one = run(tmp_path / "one", evaluator(queue), Rules(1.0, 24, 3, 0.1), Space(SLOTS, first=FIRST), name="ql")
    phones = [Phone(name, ms=1) for name in "ABC"]
    for phone in phones:
        phone.faults = [lost(phone.name), DeviceHot("hot")]
        phone.call = lambda request, call=phone.call: (time.sleep(chance.random() / 200), call(request))[1]
    with opened(*phones) as queue:
        three = run(tmp_path / "three", evaluator(queue), Rules(1.0, 24, 3, 0.1), Space(SLOTS, first=FIRST), name="ql")
    assert three == one and all(phone.measured and not phone.faults for phone in phones)


def test_a_hot_phone_pauses_latencies_and_not_training(tmp_path):
    """Hot after six measurements, until what they allow is trained: if training waited too, patience would end the search."""
    phone, trained, said = Phone("A"), [], []

    def timing(choices):
        if len(phone.measured) == 6 and len(trained) < 4:
            phone.away = DeviceHot("A is hot (thermal status 2).")
        return Timing(ms(queue.call(choices)[1]))

    def train(choices, rule):
        trained.append(choices)
        if len(trained) == 4:
            phone.away = None
        return Trained(top1(choices))

    with opened(phone, said=said) as queue:
        outcome = run(tmp_path, Evaluator(Inline(train), timing, timing, top1), Rules(2.0, 12, 4, 0.1), Space(SLOTS, first=FIRST))
    assert len(outcome.trials) == 12 and all(t.state == "complete" for t in outcome.trials if t.latency_ms <= 2.0)
    assert said == ["A is hot (thermal status 2). Measuring waits; training goes on.", "A measures again"]
