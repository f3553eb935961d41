"""ilp: an integer linear program picks one choice per slot under the budget (LANA, Molchanov et al. 2022, section 3.3). Imports sampler, additive; scipy (HiGHS) in functions."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from stages.errors import NpasError
from stages.search.additive import Additive
from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices, Space

NODES = 20_000  # of the branch and bound, rather than a time: the same result everywhere
SOLVED, LIMIT, INFEASIBLE = 0, 1, 2  # scipy.optimize.milp's states


class IntegerProgram(Sampler):
    """Maximises an additive model of accuracy under an additive model of latency; each known candidate is cut off, so the next best comes next.

    The models start from ``space.costs`` and are corrected by every trial. Without costs the first ``ilp_learn`` of the planned trials teach them: deviations of single slots from the best trial
    so far, by choices that were tried the least. When the model says that nothing meets the budget, it minimises the latency.
    """

    def __init__(self, *args, ilp_learn: float = 0.3, **options):
        super().__init__(*args, **options)
        self.learn = ilp_learn

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        if self.space.costs is None and self.spent() < max(1.0, self.learn * self.trials):
            return self.deviations(n, rng, known)
        accuracy, latency = self.models()
        return solutions(self.space, n, accuracy, latency, self.budget_ms, known)

    def models(self) -> tuple[Additive, Additive]:
        """Of accuracy and of latency in ms."""
        costs, told = self.space.costs, [t for t in self.told.values() if t.state != "failed"]
        trained, timed = [t for t in told if t.accuracy is not None], [t for t in told if t.latency_ms is not None]
        gain = None if costs is None else [[-loss for loss in row] for row in costs.loss]
        accuracy = Additive(self.space, [t.choices for t in trained], [t.accuracy or 0.0 for t in trained], gain)
        latency = Additive(self.space, [t.choices for t in timed], [t.latency_ms or 0.0 for t in timed], costs.latency_ms if costs else None, True)
        if costs is not None and not timed:
            latency.base = costs.base_ms
        return accuracy, latency

    def deviations(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:
        """The best trial so far with one slot changed to a choice that was tried the least; random candidates before the first trial."""
        rewards = {c: r for c, r in self.rewards().items() if self.told[c].state != "failed"}
        if not rewards:
            return draw_distinct(n, self.space, known, rng, [lambda: self.space.draw(rng)])
        centre, tried = max(rewards, key=lambda c: rewards[c]), list(known)

        def deviation() -> Choices:
            options = [(i, c) for i, slot in enumerate(self.space.slots) for c in slot if c != centre[i]]
            if not options:
                return centre
            counts = np.array([sum(t[i] == c for t in tried) for i, c in options])
            slot, choice = options[int(rng.choice(np.flatnonzero(counts == counts.min())))]
            tried.append((*centre[:slot], choice, *centre[slot + 1 :]))
            return tried[-1]

        return draw_distinct(n, self.space, known, rng, [deviation])

    def preferences(self) -> list[dict[Hashable, float]]:
        """Contribution of each choice to the accuracy, relative to the mean of its slot."""
        effects = self.models()[0].effects
        return [{c: float(e - row.mean()) for c, e in zip(slot, row, strict=True)} for slot, row in zip(self.space.slots, effects, strict=True)]


def solutions(space: Space, n: int, accuracy: Additive, latency: Additive, budget_ms: float | None, known: Collection[Choices]) -> list[Choices]:
    """The ``n`` best candidates outside ``known`` within the budget by these models, the best first; when there are fewer, the fastest of the others."""
    found: list[Choices] = []
    slots = [len(slot) for slot in space.slots]
    gain, times = (np.concatenate([np.zeros(0), *model.effects]) for model in (accuracy, latency))
    goals = [(-gain, times, np.inf if budget_ms is None else budget_ms - latency.base), (times, times, np.inf)]
    while goals and len(found) < n and len(known) + len(found) < space.size:
        positions = solve(slots, *goals[0], cuts=[space.encode(c) for c in (*known, *found)])
        if positions is None:
            goals.pop(0)
        else:
            found.append(space.decode(positions))
    return found


def solve(slots: Sequence[int], cost: np.ndarray, weight: np.ndarray, limit: float, cuts: Sequence[Sequence[int]] = ()) -> list[int] | None:
    """One position per slot, of minimal ``cost`` with ``weight`` at most ``limit``, other than ``cuts``; None when there is none.

    ``cost`` and ``weight`` hold the slots' choices one after the other. NpasError when the solver gives up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    if not slots:
        return None if cuts else []
    starts = np.concatenate([[0], np.cumsum(slots)])
    one = csr_array((np.ones(starts[-1]), (np.repeat(np.arange(len(slots)), slots), np.arange(starts[-1]))))
    rules = [LinearConstraint(one, 1, 1)]
    if np.isfinite(limit):
        rules.append(LinearConstraint(weight[None, :], -np.inf, limit))
    if cuts:
        columns = (np.asarray(cuts) + starts[:-1]).ravel()
        ones = csr_array((np.ones(len(columns)), (np.repeat(np.arange(len(cuts)), len(slots)), columns)), shape=(len(cuts), starts[-1]))
        rules.append(LinearConstraint(ones, -np.inf, len(slots) - 1))
    scale = np.abs(cost).max() or 1.0  # the solver's tolerances are absolute
    answer = milp(cost / scale, integrality=np.ones(starts[-1]), bounds=Bounds(0, 1), constraints=rules, options={"mip_rel_gap": 0.0, "node_limit": NODES})
    if answer.x is None:
        if answer.status == INFEASIBLE:
            return None
        raise NpasError(f"The integer program wasn't solved: {answer.message}.", "Another search_scheme.strategy, or fewer choices, will do.")
    return [int(np.argmax(answer.x[a:b])) for a, b in zip(starts, starts[1:], strict=False)]
