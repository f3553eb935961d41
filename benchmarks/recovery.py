"""What does each switch of recovery bring? ResNet-20 on CIFAR-10, block-punched 3x (groups of 8), one switch at a time. Prints a Markdown table.

    NPAS_DATA=... python benchmarks/recovery.py [--epochs 1] [--images 10000] [--seeds 0] [--algorithm magnitude] [--rate 3] [--only base,ema]

The base is the algorithm (one-shot magnitude) with fine-tuning on the labels under a one-cycle cosine and nothing else; every other row changes what its name says. Accuracy on the 10,000
test images, which decide nothing; the first convolution stays dense. Every finished run is a line of $NPAS_CACHE/benchmarks/recovery/journal.jsonl, every epoch a checkpoint beside it, so
the same command goes on after an interruption. Defaults take about 8 minutes on one quiet core; the figures that count are those of --epochs 3 --images 0 --seeds 0,1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.projects import home
from stages.artifacts import state_key
from stages.config import SearchPruner
from stages.config import Task as TaskConfig
from stages.graph import trace
from stages.pruners import PRUNERS
from stages.pruners.entry import Runner, entries
from stages.pruners.journal import Journal, code_version
from stages.schemes import Scheme, uniform_scheme
from stages.tasks import make_task
from stages.tasks.train import cpu_threads

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
    folder = home("recovery")
    folder.mkdir(parents=True, exist_ok=True)
    task_config = TaskConfig(model=f"benchmarks.shared_data.networks:{o.model}", data="benchmarks.shared_data.cifar10:data", batch_size=128, augment="crop",
                             precision=o.precision, threads=o.threads, train_limit=o.images)  # fmt: skip
    base = SearchPruner(algorithms=(o.algorithm,), distill="no", lr=o.lr, weight_decay=0.01, recalibrate=False)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    version = code_version()
    with Journal(folder / "journal.jsonl") as journal:
        known = {row["key"]: row for row in journal.rows}
        for seed in o.seeds:
            for name in o.only:
                settings = replace(base, seed=seed, **SWITCHES[name])
                key = state_key(task_config, settings, o.algorithm, settings.distill, o.rate, o.epochs, version)
                if key not in known:
                    known[key] = measured(task_config, settings, o, folder / key) | {"key": key, "switch": name, "seed": seed}
                    journal.append(known[key])
                rows[name, seed] = known[key]
                print(f"{name}, seed {seed}: {100 * known[key]['test']:.2f} % ({known[key]['seconds']:.0f} s)", file=sys.stderr, flush=True)
    print(table(o, rows))
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / "recovery.json").write_text(json.dumps({"options": {k: str(v) for k, v in vars(o).items()}, "rows": list(rows.values())}, indent=1) + "\n", encoding="utf-8")


def measured(task_config: TaskConfig, settings: SearchPruner, o: argparse.Namespace, state: Path) -> dict[str, Any]:
    """One training and its figures."""
    task = make_task(task_config)
    dense = task.model().eval()
    graph = trace(dense, task.example())
    uniform = uniform_scheme(graph, "block-punched", o.rate, 8)
    scheme = Scheme({path: layer for path, layer in uniform.layers.items() if path != graph.prunable[0].module}, uniform.coupled)
    state.mkdir(exist_ok=True)
    runner, (entry,), started = Runner(task, dense, scheme, settings, state, PRUNERS), entries(settings), time.monotonic()
    pruned = runner.run(entry, o.epochs, "")
    seconds = time.monotonic() - started
    with cpu_threads(task.threads):
        row = {split: task.evaluate(pruned.module, split) for split in ("val", "test")}
    runner.checkpoint(entry, o.epochs).unlink()
    state.rmdir()
    return row | {"seconds": seconds, "curve": pruned.curve}


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
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet20", choices=("resnet20", "resnet56"))
    p.add_argument("--epochs", type=float, default=1.0)
    p.add_argument("--images", type=int, default=10000, help="training images (0: all 45,000)")
    p.add_argument("--seeds", type=lambda t: [int(x) for x in t.split(",")], default=[0])
    p.add_argument("--algorithm", default="magnitude", choices=tuple(PRUNERS))
    p.add_argument("--rate", type=float, default=3.0)
    p.add_argument("--lr", type=float, default=0.002)
    p.add_argument("--threads", type=int, default=1, help="for training")
    p.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    p.add_argument("--only", type=lambda t: t.split(","), default=list(SWITCHES), help="rows to measure; base is always one of them")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    o = p.parse_args()
    if unknown := [name for name in o.only if name not in SWITCHES]:
        p.error(f"no switch '{unknown[0]}'; there are {', '.join(SWITCHES)}")
    o.only = list(dict.fromkeys(["base", *o.only]))
    return o


if __name__ == "__main__":
    main()
