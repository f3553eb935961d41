"""What does it bring that filters which prune well together share blocks? ResNet-20 on CIFAR-10 at 3x, with and without grouping. Prints a Markdown table.

    NPAS_DATA=... python benchmarks/grouping.py [--schemes block-punched/4,block-punched/8,...] [--epochs 1] [--images 10000] [--seeds 0,1] [--algorithm magnitude] [--rate 3]

The kept energy is the share of the squares of the weights that one-shot magnitude pruning keeps, over the pruned layers. Then the algorithm prunes and trains on the labels, and accuracy is
taken on the 10,000 test images, which decide nothing; the first convolution stays dense. The network is the same in both columns, only the order of its channels differs. The same command
goes on after an interruption. One row takes about 2 minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cifar_runs as runs
from stages.graph import trace
from stages.schemes.grouping import kept_energy, regroup_
from stages.tasks import make_task

SCHEMES = ("block-punched/4", "block-punched/8", "block-punched/16", "block-punched/32", "pattern/8")
Rows = dict[tuple[str, int, bool], dict[str, Any]]


def main() -> None:
    """Run what isn't in the journal yet, print the table."""
    o = parse()
    rows: Rows = {}
    with runs.journal("grouping") as finished:
        for name, seed, grouped in [(n, s, g) for s in o.seeds for n in o.schemes for g in (False, True)]:
            rows[name, seed, grouped] = row = finished(
                {"task": runs.task_config(o), "settings": runs.settings(o, seed), "scheme": name, "grouped": grouped, "rate": o.rate, "epochs": o.epochs},
                lambda state, name=name, seed=seed, grouped=grouped: measured(o, name, seed, grouped, state),
            )
            print(f"{name}, seed {seed}, {'grouped' if grouped else 'as it is'}: keeps {row['kept']:.4f}, {100 * row['test']:.2f} % ({row['seconds']:.0f} s)", file=sys.stderr, flush=True)
    runs.write(o, "grouping", table(o, rows), list(rows.values()))


def measured(o: argparse.Namespace, name: str, seed: int, grouped: bool, state: Path) -> dict[str, Any]:
    """One training and its figures; ``regroup_s`` is processor time."""
    task = make_task(runs.task_config(o))
    dense = task.model().eval()
    graph, (kind, _, block) = trace(dense, task.example()), name.partition("/")
    scheme = runs.inner_scheme(graph, kind, o.rate, int(block))
    began = time.process_time()
    orders = regroup_(dense, graph, scheme) if grouped else {}
    found = {"regroup_s": time.process_time() - began, "kept": kept_energy(dense.state_dict(), scheme), "orders": len(orders)}
    return {"scheme": name, "seed": seed, "grouped": grouped, **found, **runs.trained(task, dense, scheme, runs.settings(o, seed), o.epochs, state)}


def table(o: argparse.Namespace, rows: Rows) -> str:
    """Markdown."""
    lines = [f"{o.model} on CIFAR-10, {o.rate:g}x, {o.algorithm}, {o.epochs:g} epochs of {o.images or 45000} images, seeds {', '.join(map(str, o.seeds))}.", "",
             "| scheme | kept energy % | grouped | test % | grouped | points gained |", "|---|---:|---:|---|---|---:|"]  # fmt: skip
    for name in o.schemes:
        plain, grouped = ([rows[name, seed, g] for seed in o.seeds] for g in (False, True))
        gain = statistics.mean(b["test"] - a["test"] for a, b in zip(plain, grouped, strict=True))
        each = [", ".join(f"{100 * row['test']:.2f}" for row in side) for side in (plain, grouped)]
        lines.append(f"| {name} | {100 * plain[0]['kept']:.2f} | {100 * grouped[0]['kept']:.2f} | {each[0]} | {each[1]} | {100 * gain:+.2f} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    p = runs.parser(__doc__)
    p.add_argument("--schemes", type=lambda t: t.split(","), default=list(SCHEMES), help="rows to measure: scheme/filters of a block")
    p.set_defaults(seeds=[0, 1])
    o = p.parse_args()
    if unknown := [name for name in o.schemes if name not in SCHEMES]:
        p.error(f"no scheme '{unknown[0]}'; there are {', '.join(SCHEMES)}")
    return o


if __name__ == "__main__":
    main()
