"""How much of the machine the compiled networks use, layer by layer, on one thread: multiply-adds that remain against the peak, and the whole network against its roofline.

    python benchmarks/efficiency.py [--networks vgg16,...] [--rounds 30] [--dense] [--json FILE]

Each network is pruned as in benchmarks/engines.py (block-punched, 8 filters, the paper's rates); --dense leaves it dense. The peak of multiply-adds and the bandwidths are measured in the same
rounds as the layers, by loops that do nothing else; everything is the minimum over the rounds, pinned to one core. Roofline of a layer: max(multiply-adds / peak, bytes / bandwidth of memory that
holds as many bytes); weights count at main memory's bandwidth when the network's weights don't fit the third-level cache.

Goals (share of the peak, 3x3 and 1x1 layers with at least 64 channels): 75 % on planes of 14x14 and more, 65 % for 512 channels on planes of 28x28 and more, 60 % at 7x7; whole networks at most
1.25 times their roofline. A Winograd layer is counted with the multiply-adds of the direct sum, so it may exceed 100 %.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.peers.networks import NETWORKS, example, pruned
from stages.compiler import CompiledModel, compile_model
from stages.compiler.toolchain import host

SIZES = (16 << 10, 256 << 10, 8 << 20, 256 << 20)  # bytes: first, second, third level, main memory
L3_BYTES = 32 << 20
PROBE = """
#include <time.h>
#if defined(__AVX512F__)
#define FLOATS 16
#elif defined(__AVX__)
#define FLOATS 8
#else
#define FLOATS 4
#endif
typedef float V __attribute__((vector_size(4 * FLOATS))); /* wider ones would not stay in registers */
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
#define CHAINS(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
double gflops(void) { /* 12 chains of multiply-adds of whole registers */
  V x, y; for (int i = 0; i < FLOATS; i++) { x[i] = 1.0f + 1e-7f * i; y[i] = 1e-9f * i; }
#define START(k) V a##k = y + (float)k;
#define STEP(k) a##k = a##k * x + y;
#define KEEP(k) keep += a##k[0];
  CHAINS(START)
  double start = now();
  for (int n = 0; n < 80000; n++) { CHAINS(STEP) }
  double seconds = now() - start;
  volatile float keep = 0; CHAINS(KEEP)
  return 2.0 * FLOATS * 12 * 80000 / seconds * 1e-9;
}
double gbytes(const float *p, long n, int times) { /* eight streams side by side: one alone waits for its prefetcher */
  V a[8] = {0}; double start = now();
  for (int t = 0; t < times; t++) {
    for (long i = 0; i < n / 8; i += FLOATS) for (int k = 0; k < 8; k++) a[k] += *(const V *)(p + k * (n / 8) + i);
    __asm__ volatile("" : : : "memory");
  }
  double seconds = now() - start;
  volatile float keep = 0; for (int k = 0; k < 8; k++) keep += a[k][0];
  return 4.0 * n * times / seconds * 1e-9;
}
"""


@dataclass
class Machine:
    """The best that was seen so far: GFLOP/s (a multiply-add is two) and GB/s by size of the memory that is read."""

    library: Any
    gflops: float = 0.0
    gbytes: dict[int, float] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Machine:
        """Compile the two loops for this processor."""
        (folder / "probe.c").write_text(PROBE)
        subprocess.run([*host(), "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-o", str(folder / "probe.so"), str(folder / "probe.c")], check=True)
        library = ctypes.CDLL(str(folder / "probe.so"))
        library.gflops.restype = library.gbytes.restype = ctypes.c_double
        return cls(library)

    def measure(self) -> None:
        """One more round."""
        self.gflops = max(self.gflops, self.library.gflops())
        for size in SIZES:
            memory = np.ones(size // 4 + 16, np.float32)
            start = -(memory.ctypes.data // 4) % 16
            times = max(1, (4 << 20) // size)
            found = self.library.gbytes(ctypes.c_void_p(memory.ctypes.data + 4 * start), ctypes.c_long(size // 4), times)
            self.gbytes[size] = max(self.gbytes.get(size, 0.0), found)

    def bandwidth(self, size: int) -> float:
        """GB/s of the smallest memory that holds ``size`` bytes."""
        return self.gbytes[next((s for s in SIZES if s >= size), SIZES[-1])]


def goal(weight: Sequence[int], output: Sequence[int]) -> float | None:
    """The share of the peak that is asked of a layer, None where nothing is."""
    filters, channels, height, width = weight
    if (height, width) not in ((1, 1), (3, 3)) or min(filters, channels) < 64 or output[2] < 7:
        return None
    if output[2] < 14:
        return 0.6
    return 0.65 if min(filters, channels) >= 512 and output[2] >= 28 else 0.75


def compiled(name: str, dense: bool) -> CompiledModel:
    """The network, pruned at its rate unless ``dense``, checked against PyTorch."""
    module, x, graph, scheme = pruned(name, 1.0 if dense else NETWORKS[name])
    return compile_model(module, x, scheme, graph=graph)


def study(model: CompiledModel, machine: Machine, rounds: int) -> dict[str, Any]:
    """Minimum time, share of the peak and roofline of each layer and of the whole."""
    rows, x = model.manifest["kernels"], example(0).numpy()
    best = np.full(len(rows), np.inf)
    for _ in range(rounds):
        machine.measure()
        best = np.minimum(best, [ms for _, _, ms in model.profile(3, (x,))])
    cold = model.manifest["weights_bytes"] > L3_BYTES
    layers, bound = [], 0.0
    for row, ms in zip(rows, best, strict=True):
        arithmetic = 2 * row["macs"] / machine.gflops * 1e-6
        memory = row["bytes"] / (machine.gbytes[SIZES[-1]] if cold and row.get("weight") else machine.bandwidth(row["bytes"])) * 1e-6
        bound += max(arithmetic, memory) if row["kernel"] != "winograd" else ms
        wanted = goal(row["weight"], row["output"]) if row.get("weight") and row["kernel"] not in ("depthwise", "planar_depthwise") else None
        layers.append({"layer": row["layer"], "kernel": row["kernel"], "us": ms * 1e3, "share": arithmetic / ms if ms else 0.0, "roofline_us": max(arithmetic, memory) * 1e3, "goal": wanted})
    total = float(best.sum())
    return {"ms": total, "roofline_ms": bound, "times_roofline": total / bound, "gflops": machine.gflops, "gbytes": machine.gbytes, "layers": layers}


def show(name: str, result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"\n{name}: {result['ms']:.2f} ms, {result['times_roofline']:.2f} times its roofline of {result['roofline_ms']:.2f} ms (peak {result['gflops']:.0f} GFLOP/s)")
    counted = [row for row in result["layers"] if row["goal"]]
    met = sum(row["share"] >= row["goal"] for row in counted)
    print(f"  {met} of {len(counted)} layers reach their share of the peak; the others:")
    for row in counted:
        if row["share"] < row["goal"]:
            print(f"    {row['layer']:36} {row['kernel']:14} {row['us']:9.1f} us  {row['share']:5.0%} of the peak, goal {row['goal']:.0%}, roofline {row['roofline_us']:.1f} us")


def main() -> None:
    """Compile, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine.open(Path(folder))
        for name in options.networks.split(","):
            results[name] = study(compiled(name, options.dense), machine, options.rounds)
            show(name, results[name])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
