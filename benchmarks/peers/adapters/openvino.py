"""OpenVINO's CPU plugin. Its default precision on AVX-512 machines is bf16 and it pins its threads by itself: both are switched off."""

from __future__ import annotations

import openvino

from benchmarks.peers.job import Job, Session


def load(job: Job) -> Session:
    """One stream, latency hint."""
    properties = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(job.onnx, "CPU", properties).create_infer_request()
    request.set_input_tensor(openvino.Tensor(job.input()))
    return Session(lambda: request.infer(), lambda: request.get_output_tensor(0).data, openvino.__version__.partition("-")[0])
