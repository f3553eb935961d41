"""ExecuTorch with everything that its XNNPACK backend takes lowered to it. Its thread pool is process-wide and must be reset to get another size."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch

from benchmarks.peers.job import Job, Session


def convert(job: Job) -> None:
    """network.pte."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(torch.export.load(job.program), partitioner=[XnnpackPartitioner()])
    with open(job.converted("network.pte"), "wb") as file:
        lowered.to_executorch().write_to_file(file)


def load(job: Job) -> Session:
    """The method "forward" of the program."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(job.threads)
    torch.set_num_threads(job.threads)
    program = Runtime.get().load_program(job.converted("network.pte"))
    method = program.load_method("forward")
    inputs = [torch.from_numpy(job.input())]
    last: list[torch.Tensor] = []

    def step() -> None:
        last[:] = method.execute(inputs)

    def output() -> np.ndarray:
        return last[0].numpy()

    return Session(step, output, version("executorch"))
