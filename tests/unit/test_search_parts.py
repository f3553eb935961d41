"""The parts of the samplers against hand-worked examples and scikit-learn."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from stages.errors import UsageError
from stages.search import Costs, Space, Trial, make_sampler
from stages.search.additive import Additive
from stages.search.q_learning import Agent, epsilon, scaled
from stages.search.screen import neighbour, promise
from stages.search.surrogate import SCALES, fit_gp, likeliest
from stages.search.wl import Numbering, wl_counts, wl_features, wl_histograms


def test_wl_by_hand():
    rounds = wl_histograms((["a", "b", "b"], [(0, 1), (0, 2), (1, 2)]), 1)
    assert rounds[0] == Counter({"a": 1, "b": 2})
    assert rounds[1] == Counter({("a", ()): 1, ("b", ("a",)): 1, ("b", ("a", "b")): 1})


def test_wl_does_not_depend_on_the_order_of_nodes_and_takes_mappings():
    one = wl_histograms((["a", "b", "c"], [(0, 2), (1, 2)]), 3)
    other = wl_histograms(({"z": "c", "x": "b", "y": "a"}, [("x", "z"), ("y", "z")]), 3)
    assert one == other


def test_wl_kernel_is_normalised_and_tells_direction():
    graphs = [(["a", "b"], [(0, 1)]), (["a", "b"], [(1, 0)]), (["a", "c"], [(0, 1)])]
    numbering = Numbering()
    features = wl_features(wl_counts([numbering(wl_histograms(g, 1)) for g in graphs]), 1)
    kernel = features @ features.T
    assert np.allclose(np.diag(kernel), 1)
    assert kernel[0, 1] == pytest.approx(2 / 4)  # both labels shared, no subtree
    assert kernel[0, 2] == pytest.approx(2 / 4)  # "a" and its subtree shared


def test_epsilon_falls_in_equal_steps():
    steps = [epsilon(0.55 + 0.45 * (i + 0.5) / 9, 0.55) for i in range(9)]
    assert steps == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_q_update_by_hand():
    agent = Agent(Space([("a", "b"), ("x",)]), lr=0.1, gamma=1.0, initial=0.5)
    agent.update(("a", "x"), 1.0)
    last = 0.25 + 0.1 * (0.5 - 0.25)  # prior of the last slot 0.5/2, shaped reward 1/2
    assert agent.q[(1, "a")]["x"] == pytest.approx(last)
    assert agent.q[(0, None)]["a"] == pytest.approx(0.5 + 0.1 * (0.5 + last - 0.5))
    assert agent.greedy(0, None, np.random.default_rng(0)) == "a"


def test_q_learning_converges_to_the_better_branch():
    agent = Agent(Space([("a", "b"), ("x", "y")]), lr=0.2, gamma=1.0, initial=0.5)
    for _ in range(200):
        for choices, reward in {("a", "x"): 0.2, ("a", "y"): 0.9, ("b", "x"): 0.6, ("b", "y"): 0.1}.items():
            agent.update(choices, reward)
    assert agent.act(0.0, np.random.default_rng(0)) == ("a", "y")
    assert agent.q[(1, "a")] == pytest.approx({"x": 0.1, "y": 0.45})  # r_T / T
    assert agent.q[(0, None)]["a"] == pytest.approx((0.1 + 0.45) / 2 + 0.45, abs=0.05)  # the first half of the reward depends on what came after


def test_rewards():
    sampler = make_sampler("random", Space([tuple(range(5))]), 5, budget_ms=2.0, alpha=2.0)
    sampler.tell([Trial((0,), 0.9, 1.0), Trial((1,), 0.8, 3.0), Trial((2,), None, 4.0, "infeasible"), Trial((3,), state="failed", error="x")])
    assert sampler.rewards() == pytest.approx({(0,): 0.9, (1,): 0.8 - 1.0, (2,): 0.8 - 2.0, (3,): 0.8 - 2.0})


def test_gp_agrees_with_scikit_learn():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 5))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x @ rng.normal(size=5)
    likelihood, scale, noise = likeliest(x[:9], y[:9], (1e-5, 1e-2))
    ours = fit_gp(x[:9], y[:9], scale, noise)
    theirs = GaussianProcessRegressor(ConstantKernel(scale, "fixed") * DotProduct(0.0, "fixed"), alpha=noise, optimizer=None).fit(x[:9], y[:9])
    for a, b in zip(ours.predict(x[9:], return_std=True), theirs.predict(x[9:], return_std=True), strict=True):
        assert np.allclose(a, b, atol=1e-6)
    assert likelihood == pytest.approx(theirs.log_marginal_likelihood_value_)
    for other in SCALES:  # no other scale of the grid is likelier
        again = GaussianProcessRegressor(ConstantKernel(other, "fixed") * DotProduct(0.0, "fixed"), alpha=noise, optimizer=None).fit(x[:9], y[:9])
        assert again.log_marginal_likelihood_value_ <= likelihood + 1e-9


def test_the_screen_prefers_what_resembles_the_best_and_fits_the_budget():
    space = Space([("good", "bad")] * 6)
    rows = {4: (0.9, 1.0), 3: (0.8, 1.0), 0: (0.2, 1.0)}
    measured = [Trial(("good",) * n + ("bad",) * (6 - n), *row) for n, row in rows.items()]
    pool = [("good",) * 5 + ("bad",), ("bad",) * 5 + ("good",)]
    gains = promise(space, measured, pool, None, 2)
    assert gains[0] > gains[1] >= 0
    slow = [Trial(t.choices, t.accuracy, 1.0 + t.choices.count("good")) for t in measured]
    assert promise(space, slow, pool, 1.5, 2)[1] > promise(space, slow, pool, 1.5, 2)[0]  # what is good is too slow


def test_without_a_feasible_trial_only_the_budget_counts():
    space = Space([(1, 2, 3, 4)] * 3, lambda c: ([f"{i}>={k}" if x >= k else f"{i}<{k}" for i, x in enumerate(c) for k in (2, 3, 4)], []))
    measured = [Trial((x, x, y), 0.9, 10.0 - 2 * x - y, "complete") for x in (1, 2, 3) for y in (1, 2)]
    chances = promise(space, measured, [(4, 4, 4), (1, 1, 3)], 0.5, 1)
    assert chances[0] > chances[1]


def test_neighbours_stay_near_their_parents():
    space = Space([tuple(range(10))] * 20)
    rng = np.random.default_rng(0)
    parents = [(0,) * 20, (1,) * 20]
    drawn = [neighbour(space, parents, rng) for _ in range(200)]
    assert np.mean([sum(c > 1 for c in child) for child in drawn]) < 3
    assert any({0, 1} <= set(child) for child in drawn)


@pytest.mark.parametrize("bad", [{"state": "odd"}, {"accuracy": float("nan")}, {"accuracy": 0.5, "latency_ms": float("inf")}, {}])
def test_impossible_trials_are_refused(bad):
    with pytest.raises(ValueError):
        Trial(("a",), **bad)


def test_impossible_spaces_are_refused():
    for slots in ([()], [("a", "a")]):
        with pytest.raises(ValueError):
            Space(slots)
    with pytest.raises(ValueError):
        Space([("a", "b")], weights=[(1.0, 0.0)])
    with pytest.raises(ValueError):
        Space([("a", "b")]).decode([2])


def test_weights_steer_draws():
    space = Space([("rare", "common")], weights=[(1, 9)])
    rng = np.random.default_rng(0)
    assert 0.85 < np.mean([space.draw(rng)[0] == "common" for _ in range(1000)]) < 0.95


def test_steps_are_short():
    space = Space([tuple(range(20))])
    rng = np.random.default_rng(0)
    assert {space.step(0, 10, rng) for _ in range(300)} == set(range(6, 15)) - {10}
    assert {space.step(0, 0, rng) for _ in range(300)} == {1, 2, 3, 4}
    assert Space([("only",)]).step(0, "only", rng) == "only"


def test_rewards_are_scaled_for_the_agent():
    assert scaled({(0,): -1.0, (1,): 0.5, (2,): 1.0}) == {(0,): 0.0, (1,): 0.75, (2,): 1.0}
    assert scaled({(0,): 0.9}) == {(0,): 0.5}


def test_next_new_wraps_round():
    space = Space([("a", "b"), (1, 2)])
    assert space.next_new(("b", 2), {("b", 2)}) == ("a", 1)
    assert space.next_new(("a", 1), {("a", 1), ("a", 2), ("b", 1), ("b", 2)}) is None


COSTS = Costs(loss=((0, 1, 5), (0, 2, 3), (0, 4, 9)), latency_ms=((6, 3, 1), (6, 4, 1), (6, 2, 1)))
COSTED = Space([(0, 1, 2)] * 3, costs=COSTS)


def summed(table, choices) -> float:
    return sum(row[c] for row, c in zip(table, choices, strict=True))


def test_the_integer_program_lists_the_candidates_within_the_budget_from_the_best():
    asked = make_sampler("ilp", COSTED, 27, budget_ms=9.0).ask(10)
    fitting = [c for c in itertools.product(*COSTED.slots) if summed(COSTS.latency_ms, c) <= 9]
    losses = [summed(COSTS.loss, c) for c in asked]
    assert losses == sorted(summed(COSTS.loss, c) for c in fitting)[:10]
    assert set(asked) <= set(fitting)


def test_the_integer_program_learns_an_additive_space_without_estimates():
    space = Space(COSTED.slots)
    sampler = make_sampler("ilp", space, 20, budget_ms=9.0, ilp_learn=0.6)
    while len(sampler.told) < 20:
        sampler.tell([Trial(c, 1 - summed(COSTS.loss, c) / 100, summed(COSTS.latency_ms, c)) for c in sampler.ask(2)])
    best = min(summed(COSTS.loss, c) for c in itertools.product(*space.slots) if summed(COSTS.latency_ms, c) <= 9)
    assert sampler.best().accuracy == pytest.approx(1 - best / 100)


def test_a_warm_start_begins_with_the_integer_program_and_needs_estimates():
    assert make_sampler("npas", COSTED, 27, 9.0, warm_start="ilp").ask(3) == make_sampler("ilp", COSTED, 27, 9.0).ask(3)
    with pytest.raises(UsageError, match="warm start"):
        make_sampler("npas", Space([(0, 1)]), 2, 9.0, warm_start="ilp")


def test_estimates_are_corrected_by_trials():
    seen = list(itertools.product(*COSTED.slots))
    model = Additive(COSTED, seen, [-3 * summed(COSTS.loss, c) for c in seen], [[-x for x in row] for row in COSTS.loss])
    assert model((2, 2, 2)) - model((0, 0, 0)) == pytest.approx(-3 * 17, rel=0.02)


def test_annealing_cools_and_accepts_losses_ever_more_seldom():
    sampler = make_sampler("anneal", Space([(1, 2)]), 1000)
    temperatures = [sampler.temperature(p / 100) for p in range(101)]
    assert temperatures[0] == 100 and temperatures[-1] == 20 and temperatures == sorted(temperatures, reverse=True)
    early, late = (np.mean([sampler.accepts(1.0, 1.0, n) for n in numbers]) for numbers in (range(50), range(900, 1000)))
    assert early > 0.2 > 0.05 > late
    assert sampler.accepts(-0.1, 1.0, 999)


def test_evolution_forgets_the_oldest_and_mutates_one_slot():
    space = Space([tuple(range(10))] * 4)
    sampler = make_sampler("evolution", space, 50, evolution_population=3, evolution_sample=3)
    sampler.tell([Trial((i,) * 4, 1.0 - i / 10) for i in range(5)])
    assert sampler.population() == [(2,) * 4, (3,) * 4, (4,) * 4]  # the two best have died
    assert all(sum(x != 2 for x in c) == 1 for c in sampler.ask(5))
    assert sampler.preferences()[0][2] == pytest.approx(1 / 3)


def test_reinforce_moves_the_policy_to_the_rewarded_choice():
    sampler = make_sampler("rnn", Space([("good", "bad"), tuple(range(60))]), 100)
    for _ in range(30):
        sampler.tell([Trial(c, float(c[0] == "good")) for c in sampler.ask(3)])
    assert sampler.preferences()[0]["good"] > 0.8


@pytest.mark.parametrize(("budget", "wanted"), [(100.5, 0), (60.5, 40), (1.0, 99), (0.5, None)])
def test_bisection_ends_at_the_mildest_rung_within_the_budget(budget, wanted):
    space = Space([tuple(range(100))])
    sampler = make_sampler("uniform", space, 100, budget_ms=budget)
    while batch := sampler.ask(1):
        sampler.tell([Trial(c, 1 - c[0] / 100, 100.0 - c[0]) for c in batch])
    assert (sampler.best() and sampler.best().choices[0]) == wanted
    assert len(sampler.told) <= 7


def test_global_magnitude_says_what_it_needs():
    with pytest.raises(UsageError, match="threshold"):
        make_sampler("global-magnitude", Space([(0, 1)]), 2)


def test_the_agents_preferences_are_its_q_values():
    sampler = make_sampler("ql", Space([("good", "bad"), (1, 2)]), 8, q_lr=0.5)
    sampler.tell([Trial((a, b), float(a == "good")) for a in ("good", "bad") for b in (1, 2)])
    first, second = sampler.preferences()
    assert first["good"] > 0.9 > 0.1 > first["bad"]
    assert second[1] == pytest.approx(0.5, abs=0.2)
