"""What a candidate of the search costs: seconds from a pruned network and its scheme to a library that was run 20 times, by part; with an empty kernel cache and with a full one.

    python benchmarks/candidate.py [--networks mobilenet_v2,resnet18,vgg16] [--repeat 3] [--json]

Imports, tracing and pruning come before: the search does them once, or beside. "cold" is the first compilation with no compiled kernel anywhere; "warm" is the compilation of the same network with
other masks of the same scheme, the fastest of --repeat. Processor time is what a machine that does nothing else would take. Weights are random, every layer is pruned block-punched/8 (linear layers block-based) at the rate of the paper.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from stages.compiler import api, emit
from stages.compiler.model import CompiledModel
from stages.graph import Graph, trace
from stages.schemes import Scheme, prune_, uniform_scheme

RATES = {"mobilenet_v2": 1.8, "resnet18": 5.3, "vgg16": 8.2}  # NPAS, table 3
BLOCK = 8
RUNS = 20
GOALS = {"warm": 1.0, "cold": 10.0}  # seconds, for mobilenet_v2
PARTS = {  # part -> functions of the compiler, where it calls them
    "scheme's zeros": [(api, "check_zeros")],
    "lower, fuse, shrink, share": [(api, "lower"), (api, "fuse"), (api, "shrink"), (api, "share")],
    "arrange": [(api, "arrange")],
    "layouts, plan": [(api, "layouts"), (api, "plan")],
    "select and pack kernels": [(api, "select")],
    "weights into one blob": [(api, "pack")],
    "kernel cache": [(api.cache, "objects")],
    "link": [(emit, "parts"), (emit, "link_library")],
    "check against PyTorch": [(api, "compare")],
    "manifest": [(emit, "replace_manifest")],
}


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``part``."""

        @functools.wraps(function)
        def call(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the compiler's parts for a while."""
        before = [(module, name, getattr(module, name)) for places in PARTS.values() for module, name in places]
        for part, places in PARTS.items():
            for module, name in places:
                setattr(module, name, self.timed(part, getattr(module, name)))
        try:
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)


def candidate(module: nn.Module, example: torch.Tensor, scheme: Scheme, graph: Graph) -> dict[str, float]:
    """Seconds by part of compiling, loading and running a network, "all" of them together (the linker's processor time included), and the fastest run in "ms"."""
    clock, x = Clock(), example.numpy()
    start, busy = time.perf_counter(), sum(os.times()[:4])
    with clock.watching():
        model: CompiledModel = api.compile_model(module, example, scheme, graph=graph)
    compiled = time.perf_counter()
    runs = []
    for _ in range(RUNS):
        before = time.perf_counter()
        model(x)
        runs.append(time.perf_counter() - before)
    end = time.perf_counter()
    rest = compiled - start - sum(clock.seconds.values())
    used = sum(os.times()[:4]) - busy
    return clock.seconds | {"rest (load, unload)": rest, f"{RUNS} runs": end - compiled, "all": end - start, "all, processor time": used, "ms": min(runs) * 1e3}


def measure(name: str, repeat: int) -> dict[str, dict[str, float]]:
    """{"cold": parts, "warm": parts} of a network."""
    from stages.tasks.vision import torchvision

    def pruned(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
        prune_(made, scheme)
        return made

    example = torch.randn(1, 3, 224, 224)
    graph = trace(getattr(torchvision.models, name)(weights=None).eval(), example)
    scheme = uniform_scheme(graph, "block-punched", RATES[name], BLOCK)
    before = os.environ.get("NPAS_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NPAS_CACHE"] = folder
        import stages.compiler.kernels.tir  # noqa: F401  the import of TVM is none of a candidate's costs

        found = [candidate(pruned(seed), example, scheme, graph) for seed in range(1 + repeat)]
        found[0]["kernels compiled"] = len(list(Path(folder, "kernels").glob("*.o")))
    if before is None:
        del os.environ["NPAS_CACHE"]
    else:
        os.environ["NPAS_CACHE"] = before
    return {"cold": found[0], "warm": min(found[1:], key=lambda parts: parts["all"])}


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    """A table for people."""
    print(f"\n{name} {RATES[name]:g}x, seconds{'':17}{'cold':>8}{'warm':>8}")
    for part in found["warm"]:
        if part != "ms":
            print(f"  {part:34}{found['cold'][part]:8.3f}{found['warm'][part]:8.3f}")
    print(f"  kernels compiled: {found['cold']['kernels compiled']}; fastest run {found['warm']['ms']:.2f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(RATES), help="comma-separated")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.networks.split(","):
        results[name] = measure(name, options.repeat)
        if not options.json:
            show(name, results[name])
    if options.json:
        print(json.dumps({"goals": GOALS, "results": results}, indent=1))
    else:
        print(f"\ngoals for mobilenet_v2: warm {GOALS['warm']:g} s, cold {GOALS['cold']:g} s")


if __name__ == "__main__":
    main()
