"""DeepSparse 1.8.0, the last release with an engine in it (1.9.0 is empty)."""

from __future__ import annotations

import os

os.environ["NM_DISABLE_ANALYTICS"] = "1"  # it would report the run to its maker

import deepsparse
import numpy as np
import onnx

from benchmarks.peers.job import Job, Session

IR = 8  # it refuses files newer than 9, though it knows their operators


def convert(job: Job) -> None:
    """network.onnx with an older file version."""
    model = onnx.load(job.onnx)
    model.ir_version = IR
    onnx.save(model, job.converted("network.onnx"))


def load(job: Job) -> Session:
    """An engine of ``job.threads`` cores."""
    engine = deepsparse.Engine(model=job.converted("network.onnx"), batch_size=1, num_cores=job.threads)
    inputs = [job.input()]
    last: list[np.ndarray] = []

    def step() -> None:
        last[:] = engine.run(inputs)

    def output() -> np.ndarray:
        return last[0]

    return Session(step, output, deepsparse.__version__)
