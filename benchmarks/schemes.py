"""Every pruning scheme on typical layers: how much of the pruning rate becomes speed. One thread, one command, a Markdown table.

    python benchmarks/schemes.py [--layers 64@56,fc] [--rates 2.25,4.5,8] [--rounds 40] [--json]

Each layer stands in a small network (a depthwise layer before it, a dense 1x1 layer behind, so that filters can be removed); what is timed is the layer itself, layout changes for its sake included.
Dense and all schemes of one layer run in the same rounds on one pinned core; the figures are minimums over the rounds. Dense is npas's own fastest dense kernel (Winograd for most 3x3 layers, so a
mask has to beat it before it gains anything). Weights are random; every compiled network is compared with PyTorch. "share" is speed-up / rate; GFLOP/s counts the multiply-adds really executed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from stages.compiler import CompiledModel, compile_model
from stages.graph import Graph, couplings, trace
from stages.schemes import DENSE, PATTERN_RATE, LayerScheme, Scheme, prune_

LAYER = "1"  # path of the layer in its network
LAYERS: dict[str, tuple[tuple[int, ...], int]] = {  # name: (Conv2d arguments, height and width of the input)
    "64@56 3x3": ((64, 64, 3, 1, 1), 56),
    "128@28 3x3": ((128, 128, 3, 1, 1), 28),
    "256@14 3x3": ((256, 256, 3, 1, 1), 14),
    "512@7 3x3": ((512, 512, 3, 1, 1), 7),
    "192->64@28 1x1": ((192, 64, 1), 28),
    "64->128@56 3x3 s2": ((64, 128, 3, 2, 1), 56),
    "3->64@224 7x7 s2": ((3, 64, 7, 2, 3), 224),
    "fc 4096->4096": ((4096, 4096), 1),
}
BLOCKED = [(4, 1), (8, 1), (16, 1), (32, 1), (8, 4)]  # filters x channels
CONVOLUTION = [("filter", 0, 1), *(("block-punched", *b) for b in BLOCKED), ("pattern", 8, 1), ("pattern", 1, 1)]
LINEAR = [("filter", 0, 1), *(("block-based", *b) for b in BLOCKED), ("block-based", 1, 16)]


@dataclass(frozen=True)
class Row:
    """One scheme on one layer. ``milliseconds`` are minimums; ``macs`` what the kernels execute."""

    layer: str
    scheme: str
    rate: float
    milliseconds: float
    dense_milliseconds: float
    macs: int
    kernel: str
    max_abs_err: float

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        speedup, gflops = self.dense_milliseconds / self.milliseconds, 2e-6 * self.macs / self.milliseconds
        share = f"{100 * speedup / self.rate:.0f} %" if self.rate > 1 else ""
        return [self.layer, self.scheme, f"{1e3 * self.milliseconds:.0f}", f"{speedup:.2f}x", share, f"{gflops:.0f}", self.kernel]


def network(arguments: tuple[int, ...], size: int) -> tuple[nn.Module, torch.Tensor]:
    """The layer at path LAYER between neighbours that leave it free to lose filters."""
    torch.manual_seed(0)
    channels, filters = arguments[:2]
    if size == 1:
        return nn.Sequential(nn.Identity(), nn.Linear(*arguments), nn.ReLU(), nn.Linear(filters, 16)).eval(), torch.randn(1, channels)
    before = nn.Identity() if channels == 3 else nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    return nn.Sequential(before, nn.Conv2d(*arguments), nn.ReLU(), nn.Conv2d(filters, 16, 1)).eval(), torch.randn(1, channels, size, size)


def schemes(arguments: tuple[int, ...], size: int, rates: list[float]) -> Iterator[LayerScheme]:
    """Dense, then each scheme at each rate where it is legal."""
    yield DENSE
    for pruning, block, channels in LINEAR if size == 1 else CONVOLUTION:
        for rate in rates:
            if pruning != "pattern" or (arguments[2] == 3 and rate >= PATTERN_RATE):
                yield LayerScheme("keep", pruning, rate, block, channels)


def compiled(dense: nn.Module, example: torch.Tensor, graph: Graph, scheme: LayerScheme) -> CompiledModel:
    """The network with its layer pruned by ``scheme``, checked against PyTorch."""
    module = copy.deepcopy(dense)
    whole = Scheme({LAYER: scheme}, couplings(graph))
    prune_(module, whole)
    return compile_model(module, example, whole, graph=graph)


def measure(layer: str, rates: list[float], rounds: int) -> list[Row]:
    """All schemes of one layer, in the same rounds."""
    arguments, size = LAYERS[layer]
    dense, example = network(arguments, size)
    graph = trace(dense, example)
    wanted = list(schemes(arguments, size, rates))
    models = [compiled(dense, example, graph, scheme) for scheme in wanted]
    best = [float("inf")] * len(models)
    for index in range(rounds + 3):
        for number, model in enumerate(models):
            profile = model.profile(1, (example.numpy(),))
            own = sum(ms for (name, rule, ms) in profile if name == f"{LAYER}" or rule in ("relayout", "space_to_depth"))
            best[number] = min(best[number], own) if index >= 3 else best[number]
    rows = []
    for scheme, model, milliseconds in zip(wanted, models, best, strict=True):
        (kernel,) = [k for k in model.manifest["kernels"] if k["layer"] == LAYER]
        rows.append(Row(layer, scheme.label, scheme.rate, milliseconds, best[0], kernel["macs"], kernel["kernel"], model.manifest["max_abs_err"]))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = ["layer", "scheme", "us", "speed-up", "share of rate", "GFLOP/s", "kernel"]
    lines = [head, ["---"] * len(head), *(row.cells for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Compile, verify, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="", help="only layers whose names contain one of these texts, comma-separated")
    parser.add_argument("--rates", default="2.25,4.5,8", help="pruning rates, comma-separated")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    wanted = [name for name in LAYERS if any(text in name for text in options.layers.split(","))]
    rows = [row for name in wanted for row in measure(name, [float(r) for r in options.rates.split(",")], options.rounds)]
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))


if __name__ == "__main__":
    main()
