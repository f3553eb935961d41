"""Does the search pay? ResNet-20 or ResNet-56 on CIFAR-10, pruned to a share of its measured latency by several strategies, each then fine-tuned in the same way.

    NPAS_DATA=... python benchmarks/cifar_search.py [--model resnet20] [--ratios 0.35] [--seeds 0,1] [--trials 24] [--search-images 5000] [--images 0] [--epochs 3] [--threads 1]

Methods: the searched mixed scheme (npas: Q-learning, Gaussian process), block-punched at one rate, filters at one rate, an integer linear program, and simulated annealing; all see the same
budget, the same fast evaluation and the same final training (gradual magnitude with distillation). The accuracy is that of the 10,000 test images, by which nothing was chosen; the latency is
npas bench's, against the dense network in the same rounds. Everything resumes; the table (Markdown) and the figures (JSON) are written after every method. On a GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.projects import Project, home

RATES = [1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0]
METHODS: dict[str, dict[str, Any]] = {
    "npas": {"strategy": "npas"},
    "uniform block-punched": {"strategy": "uniform", "schemes": ["block-punched"], "blocks": [8], "filter_types": ["keep"]},
    "uniform filters": {"strategy": "uniform", "schemes": ["filter"], "filter_types": ["keep"]},
    "ilp": {"strategy": "ilp"},
    "anneal": {"strategy": "anneal"},
}


def main() -> None:
    """Run what isn't done yet, write the tables."""
    o = parse()
    rows: list[dict[str, Any]] = []
    for seed in o.seeds:
        base = Project(home("cifar_search") / f"{o.model}-base", params(o, 0, 1.0, {}))
        for command in ("probe", "pretrain", "replace-ops"):
            base.run(command)
        for ratio in o.ratios:
            for method in o.methods:
                project = Project(home("cifar_search") / f"{o.model}-{ratio:g}-{method.replace(' ', '-')}-{seed}", params(o, seed, ratio, METHODS[method]))
                project.take(base, ("probe", "pretrain", "replace_ops"))
                rows.append({"method": method, "ratio": ratio, "seed": seed} | measured(project))
                write(o, rows)


def params(o: argparse.Namespace, seed: int, ratio: float, method: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """params.yaml of one run."""
    task = {"model": f"benchmarks.shared_data.networks:{o.model}", "data": "benchmarks.shared_data.cifar10:data", "image_size": 32, "batch_size": 128, "augment": "crop",
            "precision": o.precision, "threads": o.threads, "train_limit": o.images}  # fmt: skip
    search = {"budget_ratio": ratio, "trials": o.trials, "train_limit": o.search_images, "train_threads": o.threads, "rates": RATES, "lr": 0.002, "seed": seed} | method
    pruner = {"algorithms": ["gradual"], "distill": "yes", "epochs": o.epochs, "lr": 0.002, "weight_decay": 0.01, "seed": seed}
    return {"task": task, "pretrain": {"epochs": 0}, "replace_ops": {"epochs": 0}, "search_scheme": search, "search_pruner": pruner}


def measured(project: Project) -> dict[str, Any]:
    """Search, fine-tune, compile, bench; the figures of the row."""
    search = project.run("search-scheme")
    pruner = project.run("search-pruner", "search_scheme", "search_pruner")
    project.run("compile", "search_scheme", "search_pruner", "compile")
    project.run("bench", "search_scheme", "search_pruner", "bench")
    bench = project.read("bench/latency.json")
    return {
        "test": pruner["accuracy"]["pruned"]["test"], "val": pruner["accuracy"]["pruned"]["val"], "dense_test": pruner["accuracy"]["dense"]["test"], "fast_val": search["accuracy"],
        "latency": bench["stats"]["median"] / bench["dense"]["stats"]["median"], "ms": bench["stats"]["median"], "dense_ms": bench["dense"]["stats"]["median"],
        "macs": bench["model"]["macs"] / bench["dense"]["macs"], "kept": 1 - pruner["sparsity"], "minutes": search["minutes"], "trials": search["trials"],
    }  # fmt: skip


def write(o: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """cifar_search.json and .md in ``o.out``; the table goes to the screen too."""
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / "cifar_search.json").write_text(json.dumps({"options": {k: str(v) for k, v in vars(o).items()}, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [f"{o.model} on CIFAR-10, dense {100 * rows[0]['dense_test']:.2f} % of 10,000 test images; {o.trials} trials, fast evaluation on {o.search_images} images, then {o.epochs} epochs on {o.images or 45000}.", "",
             "| budget | method | test % (each seed) | mean | latency of dense | MACs of dense | weights kept |", "|---|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for ratio in o.ratios:
        for method in o.methods:
            found = [r for r in rows if (r["method"], r["ratio"]) == (method, ratio)]
            if found:
                mean = {key: statistics.mean(r[key] for r in found) for key in ("test", "latency", "macs", "kept")}
                each = ", ".join(f"{100 * r['test']:.2f}" for r in found)
                lines.append(f"| {ratio:g} | {method} | {each} | {100 * mean['test']:.2f} | {mean['latency']:.3f} | {mean['macs']:.3f} | {mean['kept']:.3f} |")
    text = "\n".join(lines) + "\n"
    (o.out / "cifar_search.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet20", choices=("resnet20", "resnet56"))
    p.add_argument("--ratios", type=lambda t: [float(x) for x in t.split(",")], default=[0.35], help="latency budgets as shares of dense")
    p.add_argument("--seeds", type=lambda t: [int(x) for x in t.split(",")], default=[0, 1])
    p.add_argument("--methods", type=lambda t: t.split(","), default=list(METHODS))
    p.add_argument("--trials", type=int, default=24)
    p.add_argument("--search-images", type=int, default=5000, help="training images of the fast evaluation")
    p.add_argument("--images", type=int, default=0, help="training images of the final training (0: all 45,000)")
    p.add_argument("--epochs", type=int, default=3, help="of the final training")
    p.add_argument("--threads", type=int, default=1, help="for training")
    p.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    o = p.parse_args()
    if unknown := [m for m in o.methods if m not in METHODS]:
        p.error(f"no method '{unknown[0]}'; there are {', '.join(METHODS)}")
    return o


if __name__ == "__main__":
    main()
