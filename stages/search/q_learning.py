"""ql: tabular Q-learning over the slots (NPAS, section 5.2; schedule and defaults of metaQNN, Baker et al. 2017). Imports sampler only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import numpy as np

from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices, Space

REPLAY = 1  # tells the generator of the replay from that of the proposals


def epsilon(progress: float, explore: float, steps: int = 9, end: float = 0.1) -> float:
    """Share of random actions: 1.0 until ``explore`` of the planned trials, then down to ``end`` in equal ``steps``.

    >>> [epsilon(p, 0.55) for p in (0.0, 0.54, 0.56, 0.99, 1.0)]
    [1.0, 1.0, 0.9, 0.1, 0.1]
    """
    if progress < explore or explore >= 1:
        return 1.0
    step = min(int((progress - explore) / (1 - explore) * steps), steps - 1)
    return round(1 - (1 - end) * (step + 1) / steps, 9)


class Agent:
    """The Q table. State: (slot, choice at the slot before it); action: the slot's choice.

    The reward is shaped, r_t = r_T / T, so an action at slot t is worth r_T * (T - t) / T in the end; an action never tried is therefore worth
    ``initial * (T - t) / T``, i.e. ``initial`` is the reward expected of an unknown candidate.
    """

    def __init__(self, space: Space, lr: float, gamma: float, initial: float):
        self.space, self.lr, self.gamma = space, lr, gamma
        length = len(space.slots)
        self.prior = [initial * (length - t) / length for t in range(length)]
        self.q: dict[tuple[int, Hashable], dict[Hashable, float]] = defaultdict(dict)

    def act(self, epsilon: float, rng: np.random.Generator) -> Choices:
        """One candidate, epsilon-greedy at every slot; ties are broken at random."""
        chosen: list[Hashable] = []
        drawn = self.space.draw(rng) if self.space.anchors else None  # slots of one draw belong together
        for t in range(len(self.space.slots)):
            if rng.random() < epsilon:
                chosen.append(drawn[t] if drawn else self.space.draw_slot(t, rng))
            else:
                chosen.append(self.greedy(t, chosen[-1] if chosen else None, rng))
        return tuple(chosen)

    def greedy(self, t: int, before: Hashable, rng: np.random.Generator) -> Hashable:
        """The choice of slot ``t`` with the highest value."""
        values = self.q.get((t, before), {})
        worth = np.array([values.get(choice, self.prior[t]) for choice in self.space.slots[t]])
        return self.space.slots[t][int(rng.choice(np.flatnonzero(worth == worth.max())))]

    def worth(self, t: int, choice: Hashable) -> float:
        """Mean value of a choice of slot ``t`` over the states in which it was tried; its initial value if there are none."""
        values = [actions[choice] for (slot, _), actions in self.q.items() if slot == t and choice in actions]
        return float(np.mean(values)) if values else self.prior[t]

    def update(self, choices: Choices, reward: float) -> None:
        """One trajectory, from its last transition back, so that the reward reaches the first slot at once."""
        after = 0.0
        for t in reversed(range(len(choices))):
            values = self.q[(t, choices[t - 1] if t else None)]
            old = values.get(choices[t], self.prior[t])
            values[choices[t]] = old + self.lr * (reward / len(choices) + self.gamma * after - old)
            unknown = self.prior[t] if len(values) < len(self.space.slots[t]) else -np.inf
            after = max(unknown, *values.values())


def scaled(rewards: dict[Choices, float]) -> dict[Choices, float]:
    """Rewards from 0 (the worst) to 1 (the best); all 0.5 when they are equal."""
    low, high = min(rewards.values()), max(rewards.values())
    return {c: (r - low) / (high - low) if high > low else 0.5 for c, r in rewards.items()}


class QLearning(Sampler):
    """Tabular Q-learning with experience replay: before each proposal after news, the new trajectories and ``q_replay`` old ones are replayed."""

    def __init__(self, *args, q_lr: float = 0.01, q_gamma: float = 1.0, q_initial: float = 0.5, q_replay: int = 128, q_explore: float = 0.55, q_steps: int = 9, q_end: float = 0.1, **options):  # fmt: skip
        super().__init__(*args, **options)
        self.agent = Agent(self.space, q_lr, q_gamma, q_initial)
        self.q_replay, self.schedule = q_replay, (q_explore, q_steps, q_end)
        self._learned = 0

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        self.learn()
        share = epsilon(self.progress(), *self.schedule)
        return draw_distinct(n, self.space, known, rng, [lambda: self.agent.act(share, rng)])

    def preferences(self) -> list[dict[Hashable, float]]:
        """Q value of each choice, scaled so that 0 is the worst candidate told and 1 the best; the mean over the choices before it with which it was tried, the initial value if it never was."""
        self.learn()
        length = len(self.space.slots)
        return [{c: self.agent.worth(t, c) * length / (length - t) for c in slot} for t, slot in enumerate(self.space.slots)]

    def learn(self) -> None:
        """Replay, if something was told since the last time.

        Rewards are computed anew, since those of untrained and failed candidates depend on the others, and scaled to 0..1 over everything told: metaQNN's initial value of
        0.5 then means a middling candidate whatever the metric. Unscaled, when all accuracies exceed 0.5, whatever was tried once would look better than all that wasn't.
        """
        if len(self.told) == self._learned:
            return
        rewards = scaled(self.rewards())
        memory = list(rewards)
        rng = np.random.default_rng([self.seed, len(memory), REPLAY, REPLAY])
        drawn = [memory[i] for i in rng.integers(len(memory), size=self.q_replay)]
        for choices in memory[self._learned :] + drawn:
            self.agent.update(choices, rewards[choices])
        self._learned = len(memory)
