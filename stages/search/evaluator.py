"""What the search knows of the outside, as callables: how accurate and how fast a candidate is. Imports errors, space, trials and early_stop; nothing of networks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stages.errors import DeviceFull, DeviceHot, DeviceLost, DeviceNotFound, DeviceUnauthorised, Interrupted, NpasError
from stages.search.early_stop import Curve, StopRule
from stages.search.space import Choices
from stages.search.trials import Timing

FATAL = (DeviceNotFound, DeviceUnauthorised, DeviceLost, DeviceFull, DeviceHot, Interrupted)  # not the candidate's fault: stop, and continue later


@dataclass(frozen=True)
class Trained:
    """What the short training of a candidate gave. ``stopped``: it was ended early, so the accuracy is that of a network half trained."""

    accuracy: float
    curve: Curve = ()
    stopped: bool = False


class Trainers(Protocol):
    """Those who train candidates: a stages.parallel.Pool, or Inline. A request is (choices, rule for stopping); the answer is a Trained, or an NpasError value."""

    size: int

    @property
    def pending(self) -> int:
        """Requests whose answers weren't handed out yet."""

    def submit(self, key: Choices, request: tuple[Choices, StopRule | None]) -> None:
        """Queue a candidate."""

    def next(self, timeout: float | None = None) -> tuple[Choices, Any]:
        """The next (candidate, answer) to be complete; TimeoutError after ``timeout`` seconds."""


class Inline:
    """The one trainer that works in the caller's thread, in ``next``."""

    size = 1

    def __init__(self, train: Callable[[Choices, StopRule | None], Trained]):
        self._train = train
        self._waiting: deque[tuple[Choices, tuple[Choices, StopRule | None]]] = deque()

    @property
    def pending(self) -> int:
        """See Trainers."""
        return len(self._waiting)

    def submit(self, key: Choices, request: tuple[Choices, StopRule | None]) -> None:
        """See Trainers."""
        self._waiting.append((key, request))

    def next(self, timeout: float | None = None) -> tuple[Choices, Any]:
        """Train the candidate that waits longest."""
        key, request = self._waiting.popleft()
        try:
            return key, self._train(*request)
        except NpasError as error:
            return key, error
        except Exception as error:
            return key, NpasError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Evaluator:
    """How a candidate is evaluated.

    ``latency`` runs in ``measurers`` threads of its own, beside training: as many calls at a time as there are devices. ``confirm`` measures the final candidates, when nothing trains. ``one_shot`` is the accuracy
    without any training. They may raise: the candidate is then a failed trial, except for a lost device (FATAL), which stops the search. ``damage`` and ``layer_ms`` are what sensitivity.py asks
    of candidates before any trial: the loss, and the ms of each slot's part of the network and, last, of the rest; None where no strategy that needs them may run.
    """

    trainers: Trainers
    latency: Callable[[Choices], Timing]
    confirm: Callable[[Choices], Timing]
    one_shot: Callable[[Choices], float]
    metric: str = "top1"
    measurers: int = 1
    damage: Callable[[Choices], float] | None = None
    layer_ms: Callable[[Choices], Sequence[float]] | None = None


@dataclass(frozen=True)
class Rules:
    """``trials`` in all, proposed ``batch`` at a time; a candidate slower than ``budget_ms * (1 + margin)`` isn't trained; ``early_stop`` is the confidence that
    ends a training early (None: never). Candidates that are only measured, being too slow, don't count: up to ``free`` of them.
    """

    budget_ms: float
    trials: int
    batch: int = 3
    margin: float = 0.05
    early_stop: float | None = None
    free: int = 0
