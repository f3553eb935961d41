"""MobileNetV2 at 224x224 on one thread: ONNX Runtime dense, npas dense, npas with its 1x1 convolutions pruned, all in the same rounds.

    python benchmarks/mobilenet_v2.py [--rounds 200] [--rate 3] [--blocks 32,16,8] [--json]

Needs the extra `bench` (pip install -e .[bench]). Weights are random, batch norms calibrated, so that every layer matters; each contestant's output is compared with PyTorch's before
anything is timed. Every round runs each contestant twice and times the second run, on one pinned core; ratios are of medians and of minimums over the rounds. Accuracy is no question here.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from stages.compiler import compile_model
from stages.graph import Graph, trace
from stages.schemes import Scheme, prune_, uniform_scheme

Run = Callable[[np.ndarray], np.ndarray]
GOALS = {"dense": 1.0, "sparse": 0.55}  # of ONNX Runtime's dense time


def network() -> nn.Module:
    """torchvision's mobilenet_v2 with random weights, batch norms calibrated on noise and with random gains."""
    from stages.tasks.vision import torchvision

    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, 0.0, 0.1)
        norm.momentum = None  # plain average over the calibration batches
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 224, 224))
    return model.eval()


def pointwise(graph: Graph, rate: float, block: int) -> Scheme:
    """Block-punched pruning of every 1x1 convolution; stem, depthwise layers and classifier stay dense."""
    everything = uniform_scheme(graph, "block-punched", rate, block)
    ones = {layer.module for layer in graph.prunable if layer.op == "conv2d" and layer.attrs["kernel"] == (1, 1)}
    return Scheme({name: s for name, s in everything.layers.items() if name in ones}, everything.coupled)


def onnxruntime_dense(model: nn.Module, x: torch.Tensor) -> Run:
    """A session of ONNX Runtime with all optimisations on one thread."""
    import onnxruntime

    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda a: session.run(None, {name: a})[0]


def contestants(rate: float, blocks: list[int]) -> dict[str, tuple[Run, nn.Module]]:
    """Name -> (how to run it, the PyTorch network that it must equal)."""
    dense = network()
    x = torch.randn(1, 3, 224, 224)
    graph = trace(dense, x)
    compiled = compile_model(dense, x, graph=graph)
    found: dict[str, tuple[Run, nn.Module]] = {"onnxruntime dense": (onnxruntime_dense(dense, x), dense), "npas dense": (lambda a: compiled(a)[0], dense)}
    for block in blocks:
        pruned = copy.deepcopy(dense)
        scheme = pointwise(graph, rate, block)
        prune_(pruned, scheme)
        sparse = compile_model(pruned, x, scheme, graph=graph)
        found[f"npas {rate:g}x block-punched/{block}"] = (lambda a, m=sparse: m(a)[0], pruned)  # type: ignore[misc]
    return found


def verify(name: str, run: Run, module: nn.Module, x: np.ndarray) -> float:
    """Largest error relative to the largest output; exits when it exceeds 1e-3."""
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    error = float(np.abs(run(x) - expected).max() / np.abs(expected).max())
    if not error < 1e-3:
        sys.exit(f"{name} computes something else than PyTorch: relative error {error:.2g}.")
    return error


def measure(runs: dict[str, Run], x: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contestant in each round."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 5):
        for name, run in runs.items():
            run(x)
            start = time.perf_counter()
            run(x)
            if index >= 5:  # the first rounds warm up
                samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def summary(samples: dict[str, list[float]], errors: dict[str, float], core: int) -> dict[str, object]:
    """Medians, minimums and their ratios to the first contestant."""
    reference = next(iter(samples.values()))
    rows = [
        {
            "name": name,
            "median_ms": statistics.median(s),
            "min_ms": min(s),
            "ratio_median": statistics.median(s) / statistics.median(reference),
            "ratio_min": min(s) / min(reference),
            "relative_error": errors[name],
        }
        for name, s in samples.items()
    ]
    versions = {name: version(name) for name in ("torch", "onnxruntime", "apache-tvm")}
    return {"processor": processor(), "core": core, "rounds": len(reference), "versions": versions, "goals": GOALS, "results": rows}


def show(result: dict[str, object]) -> None:
    """A table for people."""
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())  # type: ignore[attr-defined]
    print(f"{result['processor']}, core {result['core']}, {result['rounds']} rounds; {versions}")
    print(f"{'':32}{'median ms':>10}{'min ms':>10}{'median/ORT':>12}{'min/ORT':>10}{'error':>10}")
    for row in result["results"]:  # type: ignore[attr-defined]
        print(f"{row['name']:32}{row['median_ms']:10.2f}{row['min_ms']:10.2f}{row['ratio_median']:12.2f}{row['ratio_min']:10.2f}{row['relative_error']:10.1e}")
    print(f"goals: npas dense <= {GOALS['dense']:g}, pruned 3x <= {GOALS['sparse']:g} of ONNX Runtime's dense time")


def main() -> None:
    """Build, verify, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--blocks", default="32,16,8", help="block sizes, comma-separated")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    made = contestants(options.rate, [int(b) for b in options.blocks.split(",")])
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    errors = {name: verify(name, run, module, x) for name, (run, module) in made.items()}
    result = summary(measure({name: run for name, (run, _) in made.items()}, x, options.rounds), errors, core)
    print(json.dumps(result, indent=1)) if options.json else show(result)


if __name__ == "__main__":
    main()
