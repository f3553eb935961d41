"""Measure the tuning defaults that npas ships for this machine's instruction set, on the five benchmark networks, dense and pruned: layouts, then tiles.

    python benchmarks/tune_defaults.py [--minutes 30] [--most 20] [--networks vgg16,resnet18] [--isa avx2] [--write] [--compare 40]

Takes up an earlier run where it stopped (its journal lies in $NPAS_CACHE). --write puts the verdicts into stages/compiler/tuning/shipped/. --compare times each network as the cost models alone
compile it against the one that follows the database, in so many interleaved rounds. --isa avx2 measures AVX2 code on a processor that has AVX-512 too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.peers.networks import BLOCK, NETWORKS, build, example
from benchmarks.rounds import in_rounds
from stages.compiler.api import Build, prepare
from stages.compiler.model import CompiledModel
from stages.compiler.target import Target, avx2, resolve
from stages.compiler.tuning import database
from stages.compiler.tuning.networks import tune_for
from stages.compiler.tuning.request import Request
from stages.devices.probe import host_identity
from stages.graph import trace
from stages.progress import Silent
from stages.schemes import prune_, uniform_scheme


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


def target_for(isa: str) -> Target:
    """This machine, or what it would be without AVX-512."""
    host = resolve("host")
    if isa in ("", host.isa):
        return host
    if (isa, host.isa) == ("avx2", "avx512"):
        return avx2("znver3" if host.mcpu.startswith("znver") else "haswell")
    sys.exit(f"This machine can't measure {isa}.")


def compare(names: list[str], asked: list[Request], target: Target, rounds: int) -> None:
    """Print, for each network, how much faster it is than as the cost models alone compile it."""

    def compiled(request: Request) -> CompiledModel:
        return Build(*prepare(request.module, request.example, request.scheme, request.graph), target, 1).link()

    print(f"{'':34}{'model ms':>10}{'tuned ms':>10}{'min':>8}{'median':>8}")
    for request, name in zip(asked, labels(names), strict=True):
        tuned, find, find_planes = compiled(request), database.find, database.find_planes
        database.find = database.find_planes = lambda name, target: None  # type: ignore[assignment]
        untuned = compiled(request)
        database.find, database.find_planes = find, find_planes
        samples = in_rounds((untuned, tuned), example(0).numpy(), rounds)
        ratios = [a / b for a, b in zip(*samples, strict=True)]
        plain, chosen = ({(k["layer"], k["kernel"], k["tile"]) for k in model.manifest["kernels"]} for model in (untuned, tuned))
        print(
            f"{name:34}{min(samples[0]):10.3f}{min(samples[1]):10.3f}{min(samples[0]) / min(samples[1]):8.3f}{statistics.median(ratios):8.3f}  {len(chosen - plain)} kernels differ",
            flush=True,
        )


def labels(names: list[str]) -> list[str]:
    """What ``requests`` returns, in words."""
    return [f"{name} {kind}" for name in names for kind in ("dense", f"block-punched/{BLOCK} {NETWORKS[name]:g}x")]


def write(target: Target) -> Path:
    """The verdicts of this machine's journal as the shipped file of its instruction set, which keeps those that the journal lacks."""
    path = database.shipped_path(target)
    rows = [json.loads(line) for file in (path, database.path(target)) if file.exists() for line in file.read_text().splitlines()]
    head = next(row for row in reversed(rows) if row["kind"] == "device") | {"label": f"measured on {host_identity()['soc']}"}
    verdicts = {row.get("network") or row["signature"]: row for row in rows if row["kind"] in ("planes", "verdict")}
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [head, *(verdicts[name] for name in sorted(verdicts))]))
    return path


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--most", type=int, default=20, help="candidates measured for a signature")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--isa", default="", help="default: this machine's")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--compare", type=int, default=0, metavar="ROUNDS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.networks.split(",")
    target = target_for(options.isa)
    asked = requests(names) if options.minutes or options.compare else []
    if options.minutes:
        tune_for(asked, target, options.minutes, Lines(), options.most)
    if options.write:
        print(write(target))
    if options.compare:
        compare(names, asked, target, options.compare)


if __name__ == "__main__":
    main()
