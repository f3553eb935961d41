"""PyTorch as it is, in the faster of its two layouts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.peers import networks
from benchmarks.peers.job import Job, Session

ROUNDS = 4  # of both layouts, to choose


def load(job: Job) -> Session:
    """Times both layouts in turn and keeps the faster."""
    torch.set_num_threads(job.threads)
    model, x = networks.build(job.network, job.seed), torch.from_numpy(job.input())
    other = networks.channels_last(copy.deepcopy(model))
    layouts = [session(model, x, "contiguous layout"), session(other, x.to(memory_format=torch.channels_last), "channels-last layout")]
    fastest = [min(times) for times in zip(*([seconds(layout.step) for layout in layouts] for _ in range(ROUNDS)), strict=True)]
    return layouts[fastest.index(min(fastest))]


def seconds(step: Callable[[], object]) -> float:
    """The second of two runs."""
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def session(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, note: str) -> Session:
    """The network on one input, without autograd."""
    last: list[torch.Tensor] = []

    def step() -> None:
        with torch.inference_mode():
            last[:] = [model(x)]

    def output() -> np.ndarray:
        return last[0].numpy()

    return Session(step, output, torch.__version__, note)
