"""How much faster networks run on two threads than on one, measured in the same rounds: the five benchmark networks, dense and block-punched (blocks of 8, the rates of benchmarks/engines.py).

    python benchmarks/threads.py [--networks vgg16,...] [--rounds 40]

Needs two cores that do nothing else. A round runs the one-thread library and the two-thread library of a network once each, after a warm-up of both; printed are medians, and the median of the rounds'
ratios, which a machine that changes its speed between rounds doesn't move.
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

from benchmarks.peers.networks import NETWORKS, pruned
from benchmarks.rounds import in_rounds
from stages.compiler.api import compile_model

THREADS = 2


def compare(name: str, rate: float, rounds: int) -> tuple[str, float]:
    """(one line of the table, how many times as fast two threads are)."""
    module, x, graph, scheme = pruned(name, rate)
    models = [compile_model(module, x, scheme, graph=graph, threads=threads) for threads in (1, THREADS)]
    samples = in_rounds(models, x.numpy(), rounds)
    ratio = statistics.median(one / two for one, two in zip(*samples, strict=True))
    times = " | ".join(f"{statistics.median(found):.2f}" for found in samples)
    return f"| {name}{f', {rate:g}x' if rate > 1 else ''} | {times} | {ratio:.2f} |", ratio


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | one thread, ms | two, ms | times as fast |\n|---|---:|---:|---:|")
    for kind in ("dense", "pruned"):
        ratios = []
        for name in options.networks.split(","):
            line, ratio = compare(name, NETWORKS[name] if kind == "pruned" else 1.0, options.rounds)
            ratios.append(ratio)
            print(line, flush=True)
        print(f"| geometric mean, {kind} | | | {statistics.geometric_mean(ratios):.2f} |", flush=True)


if __name__ == "__main__":
    main()
