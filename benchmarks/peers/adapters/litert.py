"""LiteRT (TensorFlow Lite) with its XNNPACK delegate, which is on by default. Input and output are channel-last, so that no transpose is timed."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from benchmarks.peers.job import Job, Session


def convert(job: Job) -> None:
    """network.tflite through litert-torch."""
    import litert_torch
    import torch

    module = torch.export.load(job.program).module()
    channel_last = litert_torch.to_channel_last_io(module, args=[0])
    example = torch.from_numpy(job.input()).permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(channel_last, (example,)).export(job.converted("network.tflite"))


def load(job: Job) -> Session:
    """An interpreter with the input set."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=job.converted("network.tflite"), num_threads=job.threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(job.input().transpose(0, 2, 3, 1)))
    result = interpreter.get_output_details()[0]["index"]
    return Session(interpreter.invoke, lambda: interpreter.get_tensor(result), version("ai-edge-litert"))
