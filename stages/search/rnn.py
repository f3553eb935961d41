"""rnn: an LSTM controller writes a candidate slot by slot and is trained by REINFORCE (Li et al. 2020, arXiv 2012.13801; Zoph and Le 2017). Imports sampler; controller (torch) in functions."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from stages.search.sampler import Sampler, draw_distinct
from stages.search.space import Choices


class Recurrent(Sampler):
    """Draws candidates from the controller's policy; after each lesson, one step along (reward - baseline) * grad log p for each new trial.

    Rewards count in standard deviations of those so far, so that the step doesn't depend on the metric; the moving baseline takes in 1 - ``rnn_baseline`` of each.
    ``rnn_entropy`` rewards a policy that stays undecided.
    """

    def __init__(self, *args, rnn_hidden: int = 32, rnn_lr: float = 0.02, rnn_baseline: float = 0.8, rnn_entropy: float = 0.01, **options):
        from stages.search.controller import Controller

        super().__init__(*args, **options)
        self.controller = Controller(self.space, rnn_hidden, rnn_lr, self.seed)
        self.decay, self.entropy = rnn_baseline, rnn_entropy
        self.baseline: float | None = None
        self._learned = 0

    def propose(self, n: int, rng: np.random.Generator, known: set[Choices]) -> list[Choices]:  # noqa: D102
        self.learn()
        return draw_distinct(n, self.space, known, rng, [lambda: self.controller.draw(rng)])

    def learn(self) -> None:
        """Take in what was told since the last time, trial by trial."""
        rewards = self.rewards()
        values = list(rewards.values())
        for choices in list(self.told)[self._learned :]:
            spread = float(np.std(values)) or 1.0
            if self.baseline is None:
                self.baseline = float(np.mean(values))
            self.controller.reinforce(choices, (rewards[choices] - self.baseline) / spread, self.entropy)
            self.baseline = self.decay * self.baseline + (1 - self.decay) * rewards[choices]
        self._learned = len(self.told)

    def preferences(self) -> list[dict[Hashable, float]]:
        """Probability of each choice, after the likeliest choices of the slots before."""
        self.learn()
        return self.controller.likeliest()
