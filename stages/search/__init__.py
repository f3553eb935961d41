"""Searching a space of categorical decisions under a latency budget: ask for candidates, tell what became of them. Knows nothing of networks; evaluate.py joins the rest.

>>> space = Space(slots=[("none", "conv1x1"), ("none", "conv3x3")], graph=lambda choices: (choices, [(0, 1)]))
>>> sampler = make_sampler("random", space, trials=4, budget_ms=6.7, seed=0)
>>> sampler.tell(Trial(choices, accuracy=0.74, latency_ms=6.2) for choices in sampler.ask(4))
>>> sampler.ask(1), sampler.best().latency_ms
((), 6.2)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from stages.errors import UsageError
from stages.search.annealing import Annealing
from stages.search.evolution import Evolution
from stages.search.global_magnitude import GlobalMagnitude
from stages.search.ilp import IntegerProgram
from stages.search.q_learning import QLearning
from stages.search.random_search import Random
from stages.search.rnn import Recurrent
from stages.search.sampler import Sampler
from stages.search.screen import Screened
from stages.search.space import Costs, Space, Trial
from stages.search.uniform import Uniform

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "npas": partial(Screened, QLearning),
    "ql": QLearning,
    "bo": partial(Screened, Random),
    "random": Random,
    "evolution": Evolution,
    "anneal": Annealing,
    "rnn": Recurrent,
    "ilp": IntegerProgram,
    "uniform": Uniform,
    "global-magnitude": GlobalMagnitude,
}
_Q = ("q_lr", "q_gamma", "q_initial", "q_replay", "q_explore", "q_steps", "q_end")
_SCREEN = ("pool", "initial", "wl_depth", "screen_neighbours", "screen_parents", "screen_steps", "screen_xi", "screen_noise", "warm_start")
TUNABLES: dict[str, tuple[str, ...]] = {
    "npas": ("alpha", *_SCREEN, *_Q),
    "ql": ("alpha", *_Q),
    "bo": ("alpha", *_SCREEN),
    "random": ("alpha",),
    "evolution": ("alpha", "evolution_population", "evolution_sample"),
    "anneal": ("alpha", "anneal_start", "anneal_stop", "anneal_rate", "anneal_perturb"),
    "rnn": ("alpha", "rnn_hidden", "rnn_lr", "rnn_baseline", "rnn_entropy"),
    "ilp": ("alpha", "ilp_learn"),
    "uniform": ("alpha",),
    "global-magnitude": ("alpha",),
}


def make_sampler(name: str, space: Space, trials: int, budget_ms: float | None = None, seed: int = 0, **tunables: Any) -> Sampler:
    """The strategy ``name`` (a key of SAMPLERS) on ``space``, its schedule planned for ``trials``; ``tunables`` as in stages.config.SearchScheme.

    ``TUNABLES[name]`` lists those that the strategy has. UsageError for an unknown strategy or tunable, and when the space lacks what the strategy can't do without.
    """
    if name not in SAMPLERS:
        raise UsageError(f"Unknown search strategy '{name}'.", f"Known: {', '.join(SAMPLERS)}.")
    if unknown := sorted(set(tunables) - set(TUNABLES[name])):
        raise UsageError(f"Strategy '{name}' has no tunable '{unknown[0]}'.", f"It has: {', '.join(TUNABLES[name])}.")
    return SAMPLERS[name](space, trials, budget_ms, seed, **tunables)


__all__ = ["SAMPLERS", "TUNABLES", "Costs", "Sampler", "Space", "Trial", "make_sampler"]
