"""torch.compile with Inductor's freezing, which folds batch norms and packs weights."""

from __future__ import annotations

import torch
import torch._inductor.config

from benchmarks.peers import networks
from benchmarks.peers.adapters.torch_eager import session
from benchmarks.peers.job import Job, Session


def load(job: Job) -> Session:
    """Compiled at the first step."""
    torch.set_num_threads(job.threads)
    torch._inductor.config.freezing = True
    model, x = networks.build(job.network, job.seed), torch.from_numpy(job.input())
    return session(torch.compile(model), x, "")
