"""PyTorch as it is, in the faster of its two layouts."""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.peers import networks
from benchmarks.peers.job import Job, Session


def load(job: Job) -> Session:
    """Times both layouts and keeps the faster."""
    torch.set_num_threads(job.threads)
    model, x = networks.build(job.network, job.seed), torch.from_numpy(job.input())
    best = min((torch.contiguous_format, torch.channels_last), key=lambda layout: fastest(model.to(memory_format=layout), x.to(memory_format=layout)))
    return session(model.to(memory_format=best), x.to(memory_format=best), "channels last" if best is torch.channels_last else "contiguous")


def fastest(model: torch.nn.Module, x: torch.Tensor, runs: int = 6) -> float:
    """Seconds of the fastest of ``runs``."""
    times = []
    with torch.inference_mode():
        for _ in range(runs):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return min(times)


def session(model: torch.nn.Module, x: torch.Tensor, note: str) -> Session:
    """The network on one input, without autograd."""
    last: list[torch.Tensor] = []

    def step() -> None:
        with torch.inference_mode():
            last[:] = [model(x)]

    def output() -> np.ndarray:
        return last[0].numpy()

    return Session(step, output, torch.__version__, note)
