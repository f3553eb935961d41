"""Learning rates by step. Imports nothing of npas."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.2  # share of the steps in which one-cycle rises
START, END = 0.04, 0.002  # learning rate at the first and the last step, as a share of the peak


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of step ``step`` (from 0) of ``total``: a cosine up over the first fifth, then a cosine down (Smith and Topin 2019)."""
    rise = max(1.0, WARM_UP * total)
    if step < rise:
        low, place = START, 1 - step / rise
    else:
        low, place = END, (step - rise) / max(1.0, total - rise)
    return peak * (low + (1 - low) * (1 + math.cos(math.pi * place)) / 2)


def cosine(step: int, total: int, peak: float) -> float:
    """The falling cosine alone, from the peak at the first step (Loshchilov and Hutter 2017, without restarts)."""
    return peak * (END + (1 - END) * (1 + math.cos(math.pi * step / total)) / 2)


def constant(step: int, total: int, peak: float) -> float:
    """The peak, at every step."""
    return peak


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}
