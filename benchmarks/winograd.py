"""Winograd against the direct sum, layer by layer: the 3x3 convolutions with stride 1 of vgg16 and resnet18 at 224x224.

Each layer runs as the gather kernel (dense) and as F(2x2), F(4x2), F(4x4), F(5x5) and F(6x6) with the blocking that the cost model picks, in interleaved rounds on one core. From call to call the weights
come from another copy, so that they are as cold as in a large network. GF are direct multiply-adds, counted as two, per second: above the processor's peak is what Winograd saves.
"model" is the cost model's time over the measured one at the peak's clock; "err" is the largest error against float64 for outputs of rms about 1.

    python benchmarks/winograd.py [--rounds 30] [--layers 64,64,56] [--json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.compiler import select, toolchain
from stages.compiler.ir import Layout, Step, round_up
from stages.compiler.kernels import gather, tir, winograd
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.winograd_cost import TRANSFORM, choose
from stages.compiler.target import Target, resolve
from stages.schemes.scheme import DENSE

LAYERS = [
    (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28), (512, 512, 28), (512, 512, 14),
    (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7),
]  # fmt: skip
COLD = 96 << 20  # bytes of weight copies to walk through: several third-level caches


@dataclass
class Layer:
    """A random layer, its input in place, and the right answer."""

    placed: Placed
    x: np.ndarray
    expected: np.ndarray

    @property
    def flops(self) -> int:
        """Of the direct sum."""
        weight, (n, _, h, w) = self.placed.step.weight, self.placed.output.shape
        assert weight is not None
        return 2 * weight.size * n * h * w


def layer(channels: int, filters: int, size: int, target: Target) -> Layer:
    """``size`` x ``size`` pixels, padding 1, bias and ReLU."""
    g = np.random.default_rng(0)
    image = g.standard_normal((1, channels, size, size), dtype=np.float32)
    weight = (g.standard_normal((filters, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5).astype(np.float32)
    bias = g.standard_normal(filters).astype(np.float32)
    source, made = (Layout((1, c, size, size), round_up(c, target.narrow[-1]), (1, 1, 1, 1)) for c in (channels, filters))
    step = Step("layer", "conv", ("x",), "y", {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}, weight, bias, (("relu",),))
    x = aligned(source.size)
    x.reshape(source.rows, source.cols, source.pitch)[1:-1, 1:-1, :channels] = image[0].transpose(1, 2, 0)
    exact = torch.nn.functional.conv2d(*(torch.from_numpy(a).double() for a in (image, weight, bias)), padding=1)
    return Layer(Placed(step, (source,), made), x, torch.relu(exact).numpy())


def aligned(floats: int) -> np.ndarray:
    """Zeros that begin at a cache line."""
    room = np.zeros(floats + 16, np.float32)
    first = -(room.ctypes.data // 4) % 16
    return room[first : first + floats]


class Runner:
    """A compiled kernel with its memory; every call takes the next copy of the weights."""

    def __init__(self, kernel: Kernel, of: Layer, target: Target, folder: Path):
        name = f"k{len(list(folder.iterdir()))}"
        tir.write_object(select.emit(kernel, name, target), target.tvm(), folder / f"{name}.o")
        toolchain.run([*toolchain.host(), "-shared", "-o", f"{name}.so", f"{name}.o"], folder)
        self.call = getattr(ctypes.CDLL(str(folder / f"{name}.so")), name)
        self.kernel, self.layer = kernel, of
        self.y, self.scratch = aligned(of.placed.output.size), aligned(kernel.scratch // 4)
        weights = kernel.data["w"]
        self.copies = [aligned(weights.size) for _ in range(max(1, COLD // weights.nbytes))]
        for copy in self.copies:
            copy[:] = weights
        self.data = {k: np.ascontiguousarray(v) for k, v in kernel.data.items()}
        self.turn = 0

    def run(self) -> float:
        """Seconds of processor time of one call: a shared machine gives the core to others now and then."""
        self.turn = (self.turn + 1) % len(self.copies)
        arrays = [self.layer.x, None, None, None, self.copies[self.turn], *(self.data.get(k) for k in ("b", "ptr", "idx")), self.y, self.scratch]
        pointers = [ctypes.c_void_p(a.ctypes.data if a is not None else None) for a in arrays]
        bounds = (ctypes.c_int32(0), ctypes.c_int32(self.kernel.units))
        start = time.thread_time()
        self.call(*pointers, *bounds)
        return time.thread_time() - start

    def error(self) -> float:
        """The largest error of the last call."""
        made = self.layer.placed.output
        top, left = made.border[:2]
        pixels = self.y.reshape(made.rows, made.cols, made.pitch)[top : top + made.shape[2], left : left + made.shape[3], : made.shape[1]]
        return float(np.abs(pixels.transpose(2, 0, 1) - self.layer.expected[0]).max())


def contestants(of: Layer, target: Target, folder: Path) -> dict[str, tuple[Runner, float]]:
    """Name -> (the compiled kernel, the model's cycles)."""
    assert of.placed.step.weight is not None
    filters, channels = of.placed.step.weight.shape[:2]
    n, _, h, w = of.placed.output.shape
    direct = gather.build(of.placed, DENSE, target)
    assert direct is not None
    found = {"direct": (Runner(direct, of, target, folder), winograd.direct(of.placed.step.weight, (n, h, w), target))}
    for m in TRANSFORM:
        cycles, shape = choose((n, h, w), channels, filters, target, (m,))
        found[winograd.label(shape)] = (Runner(winograd.kernel(of.placed, shape, ""), of, target, folder), cycles)
    return found


def measure(sizes: Sequence[int], target: Target, rounds: int) -> list[dict[str, object]]:
    """One row for each contestant."""
    of = layer(sizes[0], sizes[1], sizes[2], target)
    with tempfile.TemporaryDirectory(prefix="npas-winograd-") as folder:
        runs = contestants(of, target, Path(folder))
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(rounds + 1):
            for name, (run, _) in runs.items():
                seconds = run.run()
                if index:  # the first round warms up
                    samples[name].append(seconds)
        chosen = winograd.build(of.placed, DENSE, target)
        pick = "direct" if chosen is None else winograd.label(chosen.spec.shape)
        reference = min(samples["direct"])
        clock = runs["direct"][1] / reference  # the model's clock: that at which it is right for the direct sum
        return [
            {
                "layer": f"{sizes[0]}->{sizes[1]} @{sizes[2]}",
                "kernel": name,
                "tile": run.kernel.tile,
                "chosen": name == pick,
                "min_us": min(samples[name]) * 1e6,
                "median_us": statistics.median(samples[name]) * 1e6,
                "gflops": of.flops / min(samples[name]) * 1e-9,
                "speedup": reference / min(samples[name]),
                "model": cycles / clock / min(samples[name]),
                "error": run.error(),
            }
            for name, (run, cycles) in runs.items()
        ]


def show(row: dict[str, object]) -> None:
    """One line of the table."""
    mark = "*" if row["chosen"] else " "
    print(
        f"{row['layer']:16} {row['kernel']:8}{mark} {row['min_us']:9.0f} {row['median_us']:9.0f} {row['gflops']:7.0f} {row['speedup']:7.2f}x {row['model']:6.2f}"
        f" {row['error']:8.1e}  {row['tile']}",
        flush=True,
    )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--layers", nargs="*", help="channels,filters,size; default: those of vgg16 and resnet18")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    layers = [tuple(int(v) for v in text.split(",")) for text in options.layers] if options.layers else LAYERS
    if not options.json:
        print(f"{'layer':16} {'kernel':9} {'min us':>9} {'median':>9} {'GF':>7} {'speedup':>8} {'model':>6} {'err':>8}  tile (* = chosen)")
    rows = []
    for sizes in layers:
        found = measure(sizes, resolve("host"), options.rounds)
        rows += found
        if not options.json:
            for row in found:
                show(row)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
