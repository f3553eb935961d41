"""What it gains to compute the expansion and the depthwise convolution of inverted residuals in one kernel (stages/compiler/bands.py): the same pruned network with and without, in the same rounds.

    python benchmarks/bands.py [--networks mobilenet_v2:1.8,mobilenet_v2:3,mobilenet_v3_large:2] [--rounds 50]

Block-punched, blocks of 8, one thread, pinned to one core. Prints the medians, the median of the rounds' ratios, and the memory that activations take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.peers.networks import pruned
from benchmarks.rounds import in_rounds
from stages.compiler import api
from stages.compiler.target import resolve


def compare(name: str, rate: float, rounds: int) -> str:
    """One line of the table."""
    module, x, graph, scheme = pruned(name, rate)
    prepared, fuse = api.prepare(module, x, scheme, graph), api.fuse_bands
    together = api.Build(*prepared, resolve("host"), 1)
    api.fuse_bands = lambda program, *_: program
    apart = api.Build(*prepared, resolve("host"), 1)
    api.fuse_bands = fuse
    samples = in_rounds([together.link(), apart.link()], x.numpy(), rounds)
    ratio = statistics.median(b / a for a, b in zip(*samples, strict=True))
    times = " | ".join(f"{statistics.median(found):.2f}" for found in samples)
    return f"| {name}, {rate:g}x | {times} | {ratio:.3f} | {together.plan.total / 1e6:.1f} | {apart.plan.total / 1e6:.1f} |"


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mobilenet_v2:1.8,mobilenet_v2:3,mobilenet_v2:8,mobilenet_v3_large:2", help="name:rate, comma-separated")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    print("| network | together, ms | apart, ms | times as fast | MB | MB apart |\n|---|---:|---:|---:|---:|---:|")
    for item in options.networks.split(","):
        name, _, rate = item.partition(":")
        print(compare(name, float(rate), options.rounds), flush=True)


if __name__ == "__main__":
    main()
