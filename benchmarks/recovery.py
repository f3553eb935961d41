"""What does each switch of recovery bring? ResNet-20 on CIFAR-10, block-punched 3x (groups of 8), one switch at a time. Prints a Markdown table.

    NPAS_DATA=... python benchmarks/recovery.py [--epochs 1] [--images 10000] [--seeds 0] [--algorithm magnitude] [--rate 3] [--only base,ema]

The base is the algorithm (one-shot magnitude) with fine-tuning on the labels under a one-cycle cosine and nothing else; every other row changes what its name says. Accuracy on the 10,000
test images, which decide nothing; the first convolution stays dense. The same command goes on after an interruption. Defaults take about 8 minutes on one quiet
core; the figures that count are those of --epochs 3 --images 0 --seeds 0,1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cifar_runs as runs
from stages.graph import trace
from stages.tasks import make_task

DISTILL: dict[str, Any] = {"distill": "yes"}
SWITCHES: dict[str, dict[str, Any]] = {
    "base": {},
    "constant learning rate": {"schedule": "constant"},
    "cosine without a rise": {"schedule": "cosine"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "distillation of outputs": DISTILL,
    "distillation of features": DISTILL | {"distill_weight": 0.0, "feature_weight": 1.0},
    "distillation of both": DISTILL | {"feature_weight": 1.0},
    "ema of 10 % of the steps": {"ema": 0.1},
    "batch norms anew": {"recalibrate": True},
    "outputs + batch norms anew": DISTILL | {"recalibrate": True},
    "outputs + features + ema + batch norms anew": DISTILL | {"feature_weight": 1.0, "ema": 0.1, "recalibrate": True},
}


def main() -> None:
    """Run what isn't in the journal yet, print the table."""
    o = parse()
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with runs.journal("recovery") as finished:
        for seed in o.seeds:
            for name in o.only:
                rows[name, seed] = row = finished(
                    {"task": runs.task_config(o), "settings": replace(runs.settings(o, seed), **SWITCHES[name]), "rate": o.rate, "epochs": o.epochs},
                    lambda state, name=name, seed=seed: measured(o, name, seed, state),
                )
                print(f"{name}, seed {seed}: {100 * row['test']:.2f} % ({row['seconds']:.0f} s)", file=sys.stderr, flush=True)
    runs.write(o, "recovery", table(o, rows), list(rows.values()))


def measured(o: argparse.Namespace, name: str, seed: int, state: Path) -> dict[str, Any]:
    """One training and its figures."""
    task = make_task(runs.task_config(o))
    dense = task.model().eval()
    scheme = runs.inner_scheme(trace(dense, task.example()), "block-punched", o.rate, 8)
    return {"switch": name, "seed": seed, **runs.trained(task, dense, scheme, replace(runs.settings(o, seed), **SWITCHES[name]), o.epochs, state)}


def table(o: argparse.Namespace, rows: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Markdown; differences are to the base of the same seeds."""
    mean = {name: statistics.mean(rows[name, seed]["test"] for seed in o.seeds) for name in o.only}
    lines = [f"{o.model} on CIFAR-10, block-punched {o.rate:g}x in groups of 8, {o.algorithm}, {o.epochs:g} epochs of {o.images or 45000} images.", "",
             "| switch | test % (each seed) | mean | points to the base |", "|---|---|---:|---:|"]  # fmt: skip
    for name in o.only:
        each = ", ".join(f"{100 * rows[name, seed]['test']:.2f}" for seed in o.seeds)
        lines.append(f"| {name} | {each} | {100 * mean[name]:.2f} | {100 * (mean[name] - mean['base']):+.2f} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    p = runs.parser(__doc__)
    p.add_argument("--only", type=lambda t: t.split(","), default=list(SWITCHES), help="rows to measure; base is always one of them")
    o = p.parse_args()
    if unknown := [name for name in o.only if name not in SWITCHES]:
        p.error(f"no switch '{unknown[0]}'; there are {', '.join(SWITCHES)}")
    o.only = list(dict.fromkeys(["base", *o.only]))
    return o


if __name__ == "__main__":
    main()
