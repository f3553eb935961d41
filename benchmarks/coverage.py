"""Every torchvision classification CNN through npas: does it compile, how far is it from PyTorch, how long does it take. Prints a Markdown table, and the reason where one fails.

    python benchmarks/coverage.py [--size 224] [--networks resnet18,vgg16 | --all] [--json]

Weights are random, batch norms calibrated on noise, so that every layer matters; outputs are compared with PyTorch's in double precision. Milliseconds are the least of some runs on one
thread, so no judgement of speed: that is what engines.py is for. Exits with 1 when a network fails or its output hardly depends on its input.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.peers.networks import build
from stages.compiler import compile_model
from stages.errors import NpasError

NETWORKS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s", "googlenet", "inception_v3", "mnasnet0_5", "mnasnet1_0", "mobilenet_v2",
    "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "vgg16",
    "vgg16_bn",
)  # fmt: skip
NOT_CONVOLUTIONAL = ("vit", "swin", "maxvit")
AUXILIARY = ("googlenet", "inception_v3")  # have a second classifier that only training uses
RUNS, SECONDS = 30, 3.0  # runs to time, and when to stop early
COLUMNS = ("network", "input", "steps", "max_abs_err", "largest output", "compile s", "ms")


def network(name: str, size: int) -> nn.Module:
    """torchvision's network ``name`` with random weights and gains; batch norms calibrated on noise."""
    return build(name, 0, size, **({"init_weights": True, "aux_logits": False} if name in AUXILIARY else {}))


def measure(name: str, size: int) -> dict[str, Any]:
    """One row of the table; ``error`` where the network can't be compiled or equals PyTorch not."""
    size = max(size, 75) if name == "inception_v3" else size  # what its strides leave room for
    row: dict[str, Any] = {"network": name, "input": f"{size}x{size}"}
    try:
        module, generator = network(name, size), torch.Generator().manual_seed(1)
        x, other = (torch.randn(1, 3, size, size, generator=generator) for _ in range(2))
        begin = time.perf_counter()
        model = compile_model(module, x)
        row["compile s"] = round(time.perf_counter() - begin, 1)
    except NpasError as error:
        return row | {"error": f"{error.message} {error.hint}"}
    found, elsewhere = model(x.numpy())[0], model(other.numpy())[0]
    if np.abs(found - elsewhere).max() < 0.01 * np.abs(found).max():
        row["error"] = "The output hardly depends on the input, so comparing outputs proves nothing."
    manifest = model.manifest
    row |= {
        "steps": len(manifest["kernels"]),
        "max_abs_err": manifest["max_abs_err"],
        "largest output": manifest["max_abs_output"],
        "ms": round(_milliseconds(model, x.numpy()), 2),
    }
    return row


def _milliseconds(model: Any, x: np.ndarray) -> float:
    best, end = float("inf"), time.perf_counter() + SECONDS
    for _ in range(RUNS):
        begin = time.perf_counter()
        model(x)
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() > end:
            break
    return best * 1e3


def everything() -> tuple[str, ...]:
    """All classification CNNs of torchvision."""
    from stages.tasks.vision import torchvision

    return tuple(n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(NOT_CONVOLUTIONAL))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--networks", default="", help="comma-separated names, instead of the usual list")
    parser.add_argument("--all", action="store_true", help="every classification CNN of torchvision: the largest need some 30 GB of memory")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of the table")
    arguments = parser.parse_args()
    names = tuple(n for n in arguments.networks.split(",") if n) or (everything() if arguments.all else NETWORKS)
    rows = []
    if not arguments.json:
        print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for name in names:
        rows.append(measure(name, arguments.size))
        if not arguments.json:
            cells = [f"{v:.2g}" if isinstance(v := rows[-1].get(c, ""), float) and c in ("max_abs_err", "largest output") else str(v) for c in COLUMNS]
            print("| " + " | ".join(cells) + " |" + (f" {rows[-1]['error']}" if "error" in rows[-1] else ""), flush=True)
        gc.collect()
    if arguments.json:
        print(json.dumps(rows, indent=1))
    failed = [row["network"] for row in rows if "error" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} networks equal PyTorch.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
