"""How much faster networks run on two threads than on one, measured in the same rounds: the five benchmark networks, dense and block-punched (blocks of 8, the rates of benchmarks/engines.py).

    python benchmarks/threads.py [--networks vgg16,...] [--rounds 40]

Needs two cores that do nothing else, and a virtual machine may not have them: its host can run both of its processors as the two hyperthreads of one core, for seconds at a time, and then two threads
compute no faster than one, whoever's they are. So each network is compiled together with a yardstick, a few convolutions without a weight or a value from beyond the caches, that runs right behind it.
A round in which the yardstick isn't at least 1.5 times as fast on two threads had no two cores. Printed are the median of all rounds' ratios, and that of the rounds with two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.peers.networks import NETWORKS, pruned
from stages.compiler.api import compile_model
from stages.compiler.model import CompiledModel

THREADS = 2
TWO_CORES = 1.5  # times as fast, the yardstick: it reaches 1.0 on one core and some 1.9 on two


class Measured(nn.Module):
    """A network with the yardstick behind it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.yardstick = nn.Sequential(*(nn.Conv2d(256, 256, 1) for _ in range(3)))  # 50 million multiply-adds

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, and the yardstick's output."""
        return self.network(x), self.yardstick(y)


def timed(model: CompiledModel, inputs: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """Milliseconds of (network, yardstick) in one run, behind one that isn't timed."""
    model(*inputs)
    both = [0.0, 0.0]
    for layer, _, milliseconds in model.profile(1, inputs):
        both[layer.startswith("yardstick")] += milliseconds
    return both[0], both[1]


def compare(name: str, rate: float, rounds: int) -> tuple[str, float | None]:
    """(one line of the table, how many times as fast two threads are on two cores; None when the machine never had them)."""
    module, x, _, scheme = pruned(name, rate)
    module, example = Measured(module).eval(), (x, torch.randn(1, 256, 16, 16))
    scheme = dataclasses.replace(scheme, layers={f"network.{layer}": s for layer, s in scheme.layers.items()})
    one, two = (compile_model(module, example, scheme, threads=threads) for threads in (1, THREADS))
    inputs = tuple(e.numpy() for e in example)
    samples = [(timed(one, inputs), timed(two, inputs)) for _ in range(rounds)]
    ratios = [alone[0] / shared[0] for alone, shared in samples]
    cored = [ratio for ratio, (alone, shared) in zip(ratios, samples, strict=True) if alone[1] / shared[1] >= TWO_CORES]
    times = " | ".join(f"{statistics.median(sample[which][0] for sample in samples):.2f}" for which in (0, 1))
    ratio = statistics.median(cored) if cored else None
    line = f"{name}{f', {rate:g}x' if rate > 1 else ''} | {times} | {statistics.median(ratios):.2f} | {len(cored)} of {rounds} | {f'{ratio:.2f}' if ratio else ''}"
    return f"| {line} |", ratio


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | one thread, ms | two, ms | times as fast | rounds with two cores | times as fast in these |\n|---|---:|---:|---:|---:|---:|")
    for kind in ("dense", "pruned"):
        ratios = []
        for name in options.networks.split(","):
            line, ratio = compare(name, NETWORKS[name] if kind == "pruned" else 1.0, options.rounds)
            ratios += [ratio] if ratio else []
            print(line, flush=True)
        print(f"| geometric mean, {kind} | | | | | {statistics.geometric_mean(ratios):.2f} |" if ratios else f"| {kind}: never two cores | | | | | |", flush=True)


if __name__ == "__main__":
    main()
