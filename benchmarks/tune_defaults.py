"""Measure the tuning defaults that npas ships for this machine's instruction set, on the five benchmark networks, dense and pruned.

    python benchmarks/tune_defaults.py [--minutes 30] [--most 20] [--networks vgg16,resnet18] [--write]

Takes up an earlier run where it stopped (its journal lies in $NPAS_CACHE). --write puts the verdicts into stages/compiler/tuning/shipped/.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.peers.networks import NETWORKS, build, example
from stages.compiler.target import resolve
from stages.compiler.tuning import database
from stages.compiler.tuning.networks import Request, tune_networks
from stages.graph import trace
from stages.progress import Silent
from stages.schemes import prune_, uniform_scheme

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 8


class Lines(Silent):
    """Progress as lines on stderr."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def start(self, description: str, total: int | None = None) -> None:
        """Remember how many there are."""
        self.total = total or 0
        print(f"{description}: {self.total}", file=sys.stderr)

    def advance(self, line: str = "") -> None:
        """One line a step."""
        self.done += 1
        print(f"{self.done}/{self.total} {line}", file=sys.stderr, flush=True)


def requests(names: list[str]) -> list[Request]:
    """Each network dense, and block-punched at its rate."""
    found = []
    for name in names:
        dense, x = build(name, 0), example(0)
        graph = trace(dense, x)
        scheme = uniform_scheme(graph, "block-punched", NETWORKS[name], BLOCK)
        pruned = copy.deepcopy(dense)
        prune_(pruned, scheme)
        found += [Request(dense, x, None, graph), Request(pruned, x, scheme, graph)]
    return found


def write() -> Path:
    """The verdicts of this machine's journal as the shipped file of its instruction set."""
    target = resolve("host")
    rows = [json.loads(line) for line in database.path(target).read_text().splitlines()]
    head = next(row for row in rows if row["kind"] == "device") | {"label": "measured"}
    verdicts = {row["signature"]: row for row in rows if row["kind"] == "verdict"}
    path = ROOT / "stages/compiler/tuning/shipped" / f"{target.isa}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [head, *(verdicts[name] for name in sorted(verdicts))]))
    return path


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--most", type=int, default=20, help="candidates measured for a signature")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.minutes:
        tune_networks(requests(options.networks.split(",")), "host", options.minutes, Lines(), options.most)
    if options.write:
        print(write())


if __name__ == "__main__":
    main()
