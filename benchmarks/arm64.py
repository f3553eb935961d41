"""Instructions that networks for 64-bit ARM execute, dense and pruned: the cost of NEON code where no phone is at hand. No times: an emulator has none.

python benchmarks/arm64.py [--networks mobilenet_v2,resnet18] [--rates 1,3,8] [--block 8] [--size 224]

Prints for each network and rate the instructions of a whole inference, per multiply-add that is left (0.25 would be nothing but multiply-adds of four floats), and the share of each kind of
kernel. Needs the extra "arm64" (unicorn); the first run has zig compile its C library, which takes minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from typing import Any

import torch

from stages.compiler import compile_model, count, toolchain
from stages.compiler.cross import CrossModel
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme
from stages.tasks.vision import torchvision


def measure(name: str, rate: float, block: int, size: int) -> dict[str, Any]:
    """One row: counts of the network ``name`` from torchvision, random weights, block-punched at ``rate`` (1: dense)."""
    torch.manual_seed(0)
    module, example = torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, size, size)
    graph, scheme = trace(module, example), None
    if rate > 1:
        module = copy.deepcopy(module)
        scheme = uniform_scheme(graph, "block-punched", rate, block)
        prune_(module, scheme)
    model = compile_model(module, example, scheme, "android-arm64", graph=graph, check=False)
    assert isinstance(model, CrossModel)
    parts: Counter[str] = Counter()
    for _, kernel, instructions in count.profile(model):
        parts[kernel] += instructions
    total, macs = sum(parts.values()), model.manifest["macs"]
    shares = {kernel: round(n / total, 3) for kernel, n in parts.most_common(4)}
    return {
        "network": name,
        "rate": rate,
        "block": block,
        "size": size,
        "insns_arm64": total,
        "macs": macs,
        "per_mac": round(total / macs, 3),
        "shares": shares,
    }


def main() -> None:
    """Measure and print, one JSON line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mobilenet_v2,resnet18")
    parser.add_argument("--rates", default="1,3,8")
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    wanted = parser.parse_args()
    toolchain.prepare(toolchain.STATIC, print)
    for name in wanted.networks.split(","):
        for rate in wanted.rates.split(","):
            print(json.dumps(measure(name, float(rate), wanted.block, wanted.size)), flush=True)


if __name__ == "__main__":
    main()
