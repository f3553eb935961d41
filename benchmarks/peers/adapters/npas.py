"""npas itself: dense at rate 1, otherwise block-punched with blocks of 8 on every layer where that is legal (block-based on linear ones)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers import networks
from benchmarks.peers.job import Job, Session
from stages.compiler.api import compile_model
from stages.compiler.model import load_model
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme

BLOCK = 8


def convert(job: Job) -> None:
    """model.so, and output.npy where pruning changed what the network computes."""
    model, x = networks.build(job.network, job.seed), torch.from_numpy(job.input())
    graph = trace(model, x)
    scheme = uniform_scheme(graph, "block-punched", job.rate, block=BLOCK) if job.rate > 1 else None
    if scheme is not None:
        prune_(model, scheme)
        with torch.no_grad():
            np.save(job.converted("output.npy"), model(x).numpy())
    compile_model(model, x, scheme, threads=job.threads, graph=graph).save(job.converted("model.so"))


def load(job: Job) -> Session:
    """The compiled network."""
    model, x = load_model(Path(job.converted("model.so"))), job.input()
    last: list[np.ndarray] = []

    def step() -> None:
        last[:] = model(x)

    return Session(step, lambda: last[0], "working tree")
