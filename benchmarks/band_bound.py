"""What whole inverted residuals by bands of rows (expansion, depthwise convolution and projection in one kernel) could gain at most: each block alone against the same block on images of half and a
quarter of the rows, two and four times over. The small images stay in the cache as bands would, and pay nothing for halos and scratch memory.

    python benchmarks/band_bound.py [--networks mobilenet_v2:1,mobilenet_v2:1.8,...] [--rounds 30]

Rate 1 is dense; others are block-punched (blocks of 8), on planes from 28x28 on, with the bands of stages/compiler/bands.py. One thread, pinned to one core, minima over the rounds, without the transforms
of the images at the ends. Squeeze-and-excitation is left out: it needs the whole image.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.peers.networks import build, example
from stages.compiler import CompiledModel, api
from stages.compiler.target import resolve
from stages.graph import trace
from stages.schemes import Scheme, prune_, uniform_scheme

BLOCK = 8
PLANES = 28  # columns from which pruned layers run on planes


def blocks(name: str) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """(name, module without squeeze-and-excitation, shape of its input) of each inverted residual."""
    network, found = build(name, 0), []
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in network.named_modules():
        if type(module).__name__ in ("InvertedResidual", "MBConv"):
            module.register_forward_pre_hook(lambda _, inputs, path=path: shapes.update({path: tuple(inputs[0].shape)}))
            found.append((path, module))
    with torch.no_grad():
        network(example(0))
    for path, module in list(network.named_modules()):
        if type(module).__name__ == "SqueezeExcitation":
            setattr(network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], nn.Identity())
    return [(path, module, shapes[path]) for path, module in found]


def compiled(module: nn.Module, x: torch.Tensor, rate: float) -> CompiledModel:
    """The block for images like ``x``, pruned in place by ``rate``."""
    graph = trace(module, x)
    scheme = uniform_scheme(graph, "block-punched", rate, BLOCK) if rate > 1 else Scheme()
    prune_(module, scheme)
    sizes = {tuple(layer.shape[2:]) for layer in graph.layers if len(layer.shape) == 4}
    planes = tuple(sorted(size for size in sizes if size[1] >= PLANES)) if rate > 1 else ()
    return api.Build(*api.prepare(module, x, scheme, graph), resolve("host"), 1, planes=planes).link()


def microseconds(model: CompiledModel, x: np.ndarray, rounds: int) -> float:
    """The sum of the kernels' fastest runs, but for the transforms at the ends."""
    best = np.min([[row[2] for row in model.profile(3, (x,))] for _ in range(rounds)], axis=0)
    return 1e3 * sum(float(t) for t, kernel in zip(best, model.manifest["kernels"], strict=True) if kernel["kernel"] != "boundary")


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mobilenet_v2:1,mobilenet_v3_large:1,efficientnet_b0:1,mobilenet_v2:1.8,mobilenet_v2:8,mobilenet_v3_large:2", help="name:rate, comma-separated")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    for item in options.networks.split(","):
        name, _, rate = item.partition(":")
        print(f"\n{name}, {rate}x\n| block | input | whole, us | 2 x half | 4 x quarter |\n|---|---|---:|---:|---:|", flush=True)
        whole = fastest = 0.0
        for path, module, (n, c, h, w) in blocks(name):
            times = []
            for parts in (1, 2, 4):
                if parts == 1 or h % (2 * parts) == 0 and h // parts >= 14:
                    x = torch.randn(n, c, h // parts, w, generator=torch.Generator().manual_seed(0))
                    times.append(parts * microseconds(compiled(module, x, float(rate)), x.numpy(), options.rounds))
            whole, fastest = whole + times[0], fastest + min(times)
            if len(times) > 1:
                print(f"| {path} | {c}x{h}x{w} | " + " | ".join(f"{t:.0f}" for t in times) + " |", flush=True)
        print(f"All inverted residuals: {whole:.0f} us, {fastest:.0f} with the better of both everywhere: at most {whole / fastest:.3f} times as fast.", flush=True)


if __name__ == "__main__":
    main()
