"""MNN, converted from ONNX by its mnnconvert; fp32 throughout ("high" precision)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import MNN
import numpy as np

from benchmarks.peers.job import Job, Session


def convert(job: Job) -> None:
    """network.mnn."""
    program = str(Path(sys.executable).parent / "mnnconvert")
    subprocess.run([program, "-f", "ONNX", "--modelFile", job.onnx, "--MNNModel", job.converted("network.mnn"), "--bizCode", "npas"], check=True)
    if not os.path.exists(job.converted("network.mnn")):
        raise RuntimeError("mnnconvert wrote no network")  # it exits with 0 when it fails


def load(job: Job) -> Session:
    """An interpreter's session with its input copied in."""
    interpreter = MNN.Interpreter(job.converted("network.mnn"))
    session = interpreter.createSession({"backend": "CPU", "numThread": job.threads, "precision": "high"})
    x = job.input()
    image = MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, MNN.Tensor_DimensionType_Caffe)
    interpreter.getSessionInput(session).copyFrom(image)

    def output() -> np.ndarray:
        found = interpreter.getSessionOutput(session)
        host = MNN.Tensor(found.getShape(), MNN.Halide_Type_Float, np.zeros(found.getShape(), np.float32), MNN.Tensor_DimensionType_Caffe)
        found.copyToHostTensor(host)
        return np.array(host.getNumpyData(), np.float32)

    return Session(lambda: interpreter.runSession(session), output, version("MNN"))
