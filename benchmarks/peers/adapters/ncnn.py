"""ncnn, converted by pnnx. Every option that would compute in fp16 or bf16 is off: both tools default to fp16."""

from __future__ import annotations

import importlib.util
import subprocess
from importlib.metadata import version
from pathlib import Path

import ncnn
import numpy as np

from benchmarks.peers.job import Job, Session


def convert(job: Job) -> None:
    """network.ncnn.param and network.ncnn.bin; pnnx writes beside its input, so it gets a link in this engine's folder."""
    link = Path(job.converted("network.onnx"))
    link.symlink_to(job.onnx)
    shape = ",".join(str(n) for n in job.input().shape)
    package = importlib.util.find_spec("pnnx")  # its Python half needs torch, the program doesn't
    assert package is not None and package.origin is not None
    subprocess.run([str(Path(package.origin).parent / "pnnx"), str(link), f"inputshape=[{shape}]", "fp16=0"], check=True, cwd=job.model)
    for left in set(Path(job.model).iterdir()) - {Path(job.converted(f"network.ncnn.{part}")) for part in ("param", "bin")}:
        left.unlink()


def load(job: Job) -> Session:
    """A network and its input blob. ``ncnn.Mat(array)`` borrows the array, so it is cloned."""
    network = ncnn.Net()
    network.opt.num_threads = job.threads
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed", "vulkan_compute"):
        if hasattr(network.opt, f"use_{option}"):
            setattr(network.opt, f"use_{option}", False)
    for code in (network.load_param(job.converted("network.ncnn.param")), network.load_model(job.converted("network.ncnn.bin"))):
        if code:
            raise RuntimeError(f"ncnn can't load {job.network} (code {code})")
    x = job.input()[0]
    image = ncnn.Mat(x).clone()
    last: list[ncnn.Mat] = []

    def step() -> None:
        extractor = network.create_extractor()
        extractor.input(network.input_names()[0], image)
        code, out = extractor.extract(network.output_names()[0])
        if code:
            raise RuntimeError(f"ncnn can't run {job.network} (code {code})")
        last[:] = [out]

    return Session(step, lambda: np.array(last[0]).reshape(1, -1), version("ncnn"))
