"""What does it bring that filters which prune well together share blocks? ResNet-20 on CIFAR-10 at 3x, with and without grouping. Prints a Markdown table.

    NPAS_DATA=... python benchmarks/grouping.py [--schemes block-punched/4,block-punched/8,...] [--epochs 1] [--images 10000] [--seeds 0,1] [--algorithm magnitude] [--rate 3]

The kept energy is the share of the squares of the weights that one-shot magnitude pruning keeps, over the pruned layers. Then the algorithm prunes and trains on the labels, and accuracy is
taken on the 10,000 test images, which decide nothing; the first convolution stays dense. The network is the same in both columns, only the order of its channels differs. Every finished run is
a line of $NPAS_CACHE/benchmarks/grouping/journal.jsonl, every epoch a checkpoint beside it, so the same command goes on after an interruption. One row takes about 2 minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
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
from stages.schemes.grouping import kept_energy, regroup_
from stages.tasks import make_task
from stages.tasks.train import cpu_threads

SCHEMES = ("block-punched/4", "block-punched/8", "block-punched/16", "block-punched/32", "pattern/8")
Rows = dict[tuple[str, int, bool], dict[str, Any]]


def main() -> None:
    """Run what isn't in the journal yet, print the table."""
    o = parse()
    folder = home("grouping")
    folder.mkdir(parents=True, exist_ok=True)
    task_config = TaskConfig(model=f"benchmarks.shared_data.networks:{o.model}", data="benchmarks.shared_data.cifar10:data", batch_size=128, augment="crop",
                             precision=o.precision, threads=o.threads, train_limit=o.images)  # fmt: skip
    rows: Rows = {}
    version = code_version()
    with Journal(folder / "journal.jsonl") as journal:
        known = {row["key"]: row for row in journal.rows}
        for name, seed, grouped in [(n, s, g) for s in o.seeds for n in o.schemes for g in (False, True)]:
            settings = SearchPruner(algorithms=(o.algorithm,), distill="no", lr=o.lr, weight_decay=0.01, recalibrate=False, seed=seed)
            key = state_key(task_config, settings, o.algorithm, name, grouped, o.rate, o.epochs, version)
            if key not in known:
                known[key] = measured(task_config, settings, name, grouped, o, folder / key) | {"key": key, "scheme": name, "seed": seed, "grouped": grouped}
                journal.append(known[key])
            rows[name, seed, grouped] = row = known[key]
            print(f"{name}, seed {seed}, {'grouped' if grouped else 'as it is'}: keeps {row['kept']:.4f}, {100 * row['test']:.2f} % ({row['seconds']:.0f} s)", file=sys.stderr, flush=True)
    print(table(o, rows))
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / "grouping.json").write_text(json.dumps({"options": {k: str(v) for k, v in vars(o).items()}, "rows": list(rows.values())}, indent=1) + "\n", encoding="utf-8")


def measured(task_config: TaskConfig, settings: SearchPruner, name: str, grouped: bool, o: argparse.Namespace, state: Path) -> dict[str, Any]:
    """One training and its figures; ``regroup_s`` is processor time."""
    task = make_task(task_config)
    dense = task.model().eval()
    graph, (kind, _, block) = trace(dense, task.example()), name.partition("/")
    uniform = uniform_scheme(graph, kind, o.rate, int(block))
    scheme = Scheme({path: layer for path, layer in uniform.layers.items() if path != graph.prunable[0].module}, uniform.coupled)
    began = time.process_time()
    orders = regroup_(dense, graph, scheme) if grouped else {}
    regroup_s, kept = time.process_time() - began, kept_energy(dense.state_dict(), scheme)
    state.mkdir(exist_ok=True)
    runner, (entry,), started = Runner(task, dense, scheme, settings, state, PRUNERS), entries(settings), time.monotonic()
    pruned = runner.run(entry, o.epochs, "")
    seconds = time.monotonic() - started
    with cpu_threads(task.threads):
        row = {split: task.evaluate(pruned.module, split) for split in ("val", "test")}
    runner.checkpoint(entry, o.epochs).unlink()
    state.rmdir()
    return row | {"kept": kept, "orders": len(orders), "regroup_s": regroup_s, "seconds": seconds}


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
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet20", choices=("resnet20", "resnet56"))
    p.add_argument("--schemes", type=lambda t: t.split(","), default=list(SCHEMES), help="rows to measure: scheme/filters of a block")
    p.add_argument("--epochs", type=float, default=1.0)
    p.add_argument("--images", type=int, default=10000, help="training images (0: all 45,000)")
    p.add_argument("--seeds", type=lambda t: [int(x) for x in t.split(",")], default=[0])
    p.add_argument("--algorithm", default="magnitude", choices=tuple(PRUNERS))
    p.add_argument("--rate", type=float, default=3.0)
    p.add_argument("--lr", type=float, default=0.002)
    p.add_argument("--threads", type=int, default=1, help="for training")
    p.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    o = p.parse_args()
    if unknown := [name for name in o.schemes if name not in SCHEMES]:
        p.error(f"no scheme '{unknown[0]}'; there are {', '.join(SCHEMES)}")
    return o


if __name__ == "__main__":
    main()
