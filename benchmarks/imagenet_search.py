"""The search at ImageNet's size: pretrained EfficientNet-Lite0 and MobileNetV2, 224x224, under a measured budget; what pruning costs before and after fine-tuning.

    NPAS_DATA=... python benchmarks/imagenet_search.py [--models mobilenet_v2,efficientnet_lite0] [--ratio 0.75] [--trials 16] [--epochs 4] [--threads 1]

A sample of 1,300 training images (shared_data/imagenet.py) can't replace ImageNet: accuracies here are those of 350 images that nothing was tuned on, and fine-tuning distils from the dense
network. They tell the drop, not how good the networks are; the interval of one accuracy is about 5 points either way. So few images teach a candidate little: the search judges it by what it
is worth when what pruning leaves has made up for the rest (search_scheme.compensate), without any training. Everything resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.projects import Project, home

DATA = {"mobilenet_v2": "turned", "efficientnet_lite0": "lite"}


def main() -> None:
    """Run what isn't done yet, write the table."""
    o = parse()
    rows = []
    for model in o.models:
        project = Project(home("imagenet_search") / f"{model}-{o.ratio:g}", params(o, model))
        for command in ("probe", "pretrain", "replace-ops"):
            project.run(command)
        search = project.run("search-scheme")
        pruner = project.run("search-pruner", "search_scheme", "search_pruner")
        project.run("compile", "search_scheme", "search_pruner", "compile")
        project.run("bench", "search_scheme", "search_pruner", "bench")
        bench = project.read("bench/latency.json")
        rows.append({
            "model": model, "dense": pruner["accuracy"]["dense"]["test"], "before": untuned(project), "after": pruner["accuracy"]["pruned"]["test"], "budget": o.ratio,
            "latency": bench["stats"]["median"] / bench["dense"]["stats"]["median"], "ms": bench["stats"]["median"], "dense_ms": bench["dense"]["stats"]["median"],
            "macs": bench["model"]["macs"] / bench["dense"]["macs"], "minutes": search["minutes"], "trials": search["trials"], "feasible": search["feasible"],
        })  # fmt: skip
        write(o, rows)


def params(o: argparse.Namespace, model: str) -> dict[str, dict[str, Any]]:
    """params.yaml of one run."""
    task = {"model": f"benchmarks.shared_data.networks:{model}", "data": f"benchmarks.shared_data.imagenet:{DATA[model]}", "image_size": 224, "batch_size": 32, "augment": "none",
            "precision": o.precision, "threads": o.threads}  # fmt: skip
    search = {"budget_ratio": o.ratio, "trials": o.trials, "train_threads": o.threads, "epochs": 0, "rates": [1.25, 1.5, 2.0, 3.0, 5.0], "ablate": False}
    pruner = {"algorithms": ["least-squares"], "distill": "yes", "distill_weight": 1.0, "epochs": o.epochs, "lr": 0.0003, "weight_decay": 0.0}
    return {"task": task, "pretrain": {"epochs": 0}, "replace_ops": {"epochs": 0}, "search_scheme": search, "search_pruner": pruner}


def untuned(project: Project) -> float:
    """Test accuracy of the chosen scheme, pruned in one shot, what stays fitted to the layers' outputs, batch norms estimated anew; nothing trained."""
    from stages.artifacts import read_json, sha256
    from stages.graph import trace
    from stages.params import load
    from stages.pruners import PRUNERS
    from stages.schemes import Scheme, apply_masks, resolve
    from stages.tasks import load_network, make_task, recalibrate_bn
    from stages.tasks.train import cpu_threads

    os.chdir(project.folder)
    note, chosen = Path("search_scheme/.untuned.json"), sha256("search_scheme/network.pt")
    found = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    if found.get("network") != chosen:
        config = load(Path("params.yaml")).config
        task = make_task(config.task)
        network = load_network("search_scheme/network.pt", task)
        pruner = PRUNERS["least-squares"](network, resolve(Scheme.from_json(read_json("search_scheme/scheme.json")), trace(network, task.example())), config.search_pruner)
        pruner.prepare(task)
        apply_masks(network, pruner.masks)
        with cpu_threads(task.threads):
            recalibrate_bn(network, task)
            found = {"network": chosen, "test": task.evaluate(network, "test")}
        note.write_text(json.dumps(found), encoding="utf-8")
    return float(found["test"])


def write(o: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """imagenet_search.json and .md in ``o.out``; the table goes to the screen too."""
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / "imagenet_search.json").write_text(json.dumps({"options": {k: str(v) for k, v in vars(o).items()}, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines = ["| network | latency of dense (budget) | ms | MACs of dense | dense % | one-shot % | fine-tuned % | trials (within the budget), minutes |", "|---|---|---|---|---:|---:|---:|---|"]
    lines += [
        f"| {r['model']} | {r['latency']:.3f} ({r['budget']:g}) | {r['dense_ms']:.2f} -> {r['ms']:.2f} | {r['macs']:.3f} | {100 * r['dense']:.1f} | {100 * r['before']:.1f} | {100 * r['after']:.1f} "
        f"| {r['trials']} ({r['feasible']}), {r['minutes']:.0f} |"
        for r in rows
    ]
    text = "\n".join(lines) + "\n"
    (o.out / "imagenet_search.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=lambda t: t.split(","), default=list(DATA))
    p.add_argument("--ratio", type=float, default=0.75, help="latency budget as a share of dense")
    p.add_argument("--trials", type=int, default=16)
    p.add_argument("--epochs", type=int, default=4, help="of the final training")
    p.add_argument("--threads", type=int, default=1, help="for training")
    p.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    o = p.parse_args()
    o.out = o.out.resolve()  # this process enters the projects' folders
    if unknown := [m for m in o.models if m not in DATA]:
        p.error(f"no network '{unknown[0]}'; there are {', '.join(DATA)}")
    return o


if __name__ == "__main__":
    main()
