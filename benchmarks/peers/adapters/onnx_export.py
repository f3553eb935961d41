"""No engine: network.onnx beside the network.pt2 of a new source folder, for all engines that start from ONNX."""

from __future__ import annotations

import torch

from benchmarks.peers.job import Job

OPSET = 18


def convert(job: Job) -> None:
    """``job.model`` is the source folder itself. Weights go into the file, not beside it: the engines copy and link it."""
    program = torch.onnx.export(torch.export.load(job.program), dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    program.save(job.converted("network.onnx"), external_data=False)
