"""ONNX Runtime, CPU provider, all graph optimisations. Its threads spin briefly between runs, as they do in production, and sleep between turns."""

from __future__ import annotations

import onnxruntime

from benchmarks.peers.job import Job, Session


def load(job: Job) -> Session:
    """A session with input and output bound to buffers of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(job.onnx, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, job.input())
    binding.bind_output(session.get_outputs()[0].name)
    return Session(lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0], onnxruntime.__version__)
