"""Three tasks in turn in one network: what does sharing the earlier tasks' frozen weights by a learnt mask bring? Prints a Markdown table.

    python benchmarks/lifelong.py [--data digits] [--model npas_tiny] [--size 16] [--images 0] [--seeds 0,1,2] [--only ...]
    NPAS_DATA=... python benchmarks/lifelong.py --data fashion --images 2000     (or cifar10)

The tasks: the first five classes, the other five, all ten turned by 90 degrees (benchmarks/in_turn.py), each with ``--images`` training images (0: all). Accuracy on the test images, which
decide nothing, of each task's network after the last one was learnt; "bits" says whether every bit of each network is what it was when its task was learnt. Every finished row is a line of
$NPAS_CACHE/benchmarks/lifelong/journal.jsonl, so the same command goes on after an interruption. The default takes about 4 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.projects import home
from stages.artifacts import state_key
from stages.config import Lifelong
from stages.config import Task as TaskConfig
from stages.graph import trace
from stages.graph.rewrite import find_replacements
from stages.lifelong import Commons, found, learn
from stages.lifelong.network import loaded, replaced
from stages.pruners.journal import Journal, code_version
from stages.tasks import Task, make_task
from stages.tasks.train import cpu_threads

TASKS = ("low", "high", "turned")
EACH = "a dense network each"
WAYS: dict[str, dict[str, Any]] = {
    EACH: {"tasks": 1},
    "a third each, nothing shared": {"reuse": 0.0},
    "+ half of the earlier ones': the mask isn't learnt": {"reuse": 0.5, "gate_lr": 0.0},
    "+ half of the earlier ones': learnt mask": {"reuse": 0.5},
    "+ 90 % of the earlier ones': learnt mask (LPS)": {"reuse": 0.9},
    "+ all of the earlier ones'": {"reuse": 1.0},
}


def main() -> None:
    """Run what isn't in the journal yet, print the table."""
    o = parse()
    folder = home("lifelong")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    with Journal(folder / "journal.jsonl") as journal:
        known = {row["key"]: row for row in journal.rows}
        for way in o.only:
            for seed in o.seeds:
                settings = replace(Lifelong(learn_epochs=o.learn_epochs, epochs=o.epochs, seed=seed), **WAYS[way])
                configs = [TaskConfig(model=o.model, data=f"benchmarks.in_turn:{o.data}_{name}", image_size=o.size, train_limit=o.images, batch_size=o.batch, threads=o.threads, seed=seed) for name in TASKS]
                key = state_key(configs, settings, o.learn_epochs, o.epochs, code_version("lifelong"))
                if key not in known:
                    known[key] = measured([make_task(c) for c in configs], settings, o.model, way == EACH) | {"key": key, "way": way, "seed": seed}
                    journal.append(known[key])
                rows.setdefault(way, []).append(known[key])
                print(f"{way}, seed {seed}: {[f'{100 * x:.1f}' for x in known[key]['test']]} ({known[key]['seconds']:.0f} s)", file=sys.stderr, flush=True)
    print(table(o, rows))
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / f"lifelong-{o.data}.json").write_text(json.dumps({"options": {k: str(v) for k, v in vars(o).items()}, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def measured(tasks: list[Task], settings: Lifelong, model: str, each: bool) -> dict[str, Any]:
    """The three tasks in turn (or each in a network of its own), and their figures at the end."""
    started, digests, ends = time.monotonic(), [], {}
    commons = begin(tasks[0], model)
    for name, task in zip(TASKS, tasks, strict=True):
        commons = begin(task, model) if each else commons
        with tempfile.TemporaryDirectory(prefix="npas-lifelong-") as folder:
            commons = learn(commons, name, task, replaced(task.model(), commons), settings, Path(folder))
        digests.append(commons.digest(name))
        ends[name] = commons
    last = ends if each else dict.fromkeys(TASKS, commons)
    test = []
    for name, task in zip(TASKS, tasks, strict=True):
        with cpu_threads(task.threads):
            test.append(task.evaluate(loaded(last[name], name, task.model()), "test"))
    return {
        "test": test, "uses": [last[name].used(name) / last[name].size for name in TASKS], "same": digests == [last[name].digest(name) for name in TASKS],
        "networks": len({id(c) for c in last.values()}), "seconds": time.monotonic() - started,
    }  # fmt: skip


def begin(task: Task, model: str) -> Commons:
    """A free network."""
    module = task.model().eval()
    graph = trace(module, task.example())
    return found(module, graph, model, Lifelong().block, [r.to_json() for r in find_replacements(graph)])


def table(o: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown; means over the seeds, with the standard error of the mean of the later tasks."""
    lines = [f"{o.model} on {o.data}, {o.size}x{o.size}, {o.images or 'all'} training images a task in batches of {o.batch}, {o.learn_epochs} + {o.epochs} epochs, test top-1 in percent, seeds {o.seeds}.", "",
             "| | classes 0-4 | classes 5-9 | turned | mean of the later two | weights used by each | networks | bits |", "|---|---:|---:|---:|---:|---|---:|---|"]  # fmt: skip
    for way, runs in rows.items():
        tests = [statistics.mean(100 * row["test"][i] for row in runs) for i in range(3)]
        later = [50 * (row["test"][1] + row["test"][2]) for row in runs]
        spread = f" ± {statistics.stdev(later) / len(later) ** 0.5:.2f}" if len(later) > 1 else ""
        uses = " ".join(f"{100 * use:.0f} %" for use in runs[0]["uses"])
        bits = "same" if all(row["same"] for row in runs) else "CHANGED"
        lines.append(f"| {way} | {tests[0]:.2f} | {tests[1]:.2f} | {tests[2]:.2f} | {statistics.mean(later):.2f}{spread} | {uses} | {runs[0]['networks']} | {bits} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="digits", choices=("digits", "fashion", "cifar10"))
    p.add_argument("--model", default="npas_tiny")
    p.add_argument("--size", type=int, default=16, help="height and width of the images")
    p.add_argument("--images", type=int, default=0, help="training images of each task (0: all)")
    p.add_argument("--batch", type=int, default=32, help="images of a training step")
    p.add_argument("--learn-epochs", type=int, default=Lifelong().learn_epochs)
    p.add_argument("--epochs", type=int, default=Lifelong().epochs)
    p.add_argument("--seeds", type=lambda t: [int(x) for x in t.split(",")], default=[0, 1, 2])
    p.add_argument("--threads", type=int, default=1, help="for training")
    p.add_argument("--only", type=lambda t: t.split(";"), default=list(WAYS), help="rows to measure, separated by semicolons")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    o = p.parse_args()
    if unknown := [way for way in o.only if way not in WAYS]:
        p.error(f"no way '{unknown[0]}'; there are {'; '.join(WAYS)}")
    return o


if __name__ == "__main__":
    main()
