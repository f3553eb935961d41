"""Which pruning algorithm keeps the most accuracy: all of them from the same pretrained CIFAR-10 network to the same schemes, with the same fine-tuning. One command, resumable.

    python benchmarks/pruners.py [--model resnet20] [--algorithms all] [--scheme block-punched/8] [--rate 3] [--epochs 3] [--seeds 0] [--precision bfloat16] [--train-limit N]
    python benchmarks/pruners.py --grid --algorithms admm,taylor [--schemes filter,pattern/8,block-punched/4,...] [--rates 2,3,5]

Every convolution and linear layer that the scheme may prune is pruned at the rate, the first included (--skip leaves layers dense); a pattern's rate is at least 2.25. Training: AdamW, one cycle, 45,000 images; batch norms are
estimated anew before each evaluation. "val" (5,000 training images that the pretrained network has seen, but not the fine-tuning) is what decisions are taken on; "test" are the 10,000 test images. "kept" is the share of the
weights of pruned layers that stay, "MACs" the multiply-accumulates of the dense network over those of the pruned one, removed input channels included. Finished runs are rows of a
journal, running ones continue at their last epoch; several processes may share the work when each has its own --out. Writes pruners.json and pruners.md. Takes CUDA when there is one.
Needs the images and networks under $NPAS_DATA; without it there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.shared_data.place import place
from stages.artifacts import write_atomic, write_json
from stages.config import PRUNERS as NAMES
from stages.config import SearchPruner
from stages.config import Task as TaskConfig
from stages.errors import NpasError
from stages.graph import Graph, trace
from stages.graph.flow import flow
from stages.pruners import PRUNERS
from stages.pruners.journal import Journal
from stages.schemes import DENSE, PATTERN_RATE, Scheme, check_zeros, uniform_scheme
from stages.tasks import Task, fit, make_task, recalibrate_bn

GRID_SCHEMES, GRID_RATES = "filter,pattern/8,block-punched/4,block-punched/8,block-punched/16,block-punched/32", "2,3,5"


@dataclass(frozen=True)
class Run:
    """All that decides how a run ends; its digest names its checkpoint."""

    model: str
    algorithm: str
    scheme: str  # "block-punched/8", "filter"
    rate: float
    epochs: float
    seed: int
    lr: float
    weight_decay: float
    batch_size: int
    train_limit: int
    precision: str
    skip: str
    settings: str  # changed tunables of search_pruner, "dais_lr=0.1"

    @property
    def digest(self) -> str:
        """Twelve digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Scheme by scheme, rate by rate, so that a part of the table is comparable early."""
    algorithms = list(NAMES) if options.algorithms == "all" else options.algorithms.split(",")
    schemes, rates = (options.schemes.split(","), options.rates.split(",")) if options.grid else ([options.scheme], [str(options.rate)])
    for seed in options.seeds.split(","):
        for scheme in schemes:
            wanted = dict.fromkeys(max(float(rate), PATTERN_RATE if scheme.startswith("pattern") else 1.0) for rate in rates)
            for rate in wanted:
                for algorithm in algorithms:
                    yield Run(
                        options.model, algorithm, scheme, rate, options.epochs, int(seed), options.lr, options.weight_decay, options.batch_size, options.train_limit,
                        options.precision, options.skip, options.set,
                    )  # fmt: skip


def task_of(options: argparse.Namespace) -> Task:
    """CIFAR-10 with the custom augmentation: shifts and mirror images."""
    return make_task(TaskConfig(
        model=f"benchmarks.shared_data.networks:{options.model}", data="benchmarks.shared_data.cifar10:data", image_size=32, batch_size=options.batch_size,
        train_limit=options.train_limit, augment="crop", precision=options.precision, threads=options.threads,
    ))  # fmt: skip


def scheme_of(run: Run, graph: Graph) -> Scheme:
    """The scheme of a run."""
    pruning, _, block = run.scheme.partition("/")
    scheme = uniform_scheme(graph, pruning, run.rate, int(block or 8))
    skipped = set(filter(None, run.skip.split(",")))
    return Scheme({path: DENSE if path in skipped else layer for path, layer in scheme.layers.items()}, scheme.coupled)


def settings_of(run: Run) -> SearchPruner:
    """The tunables of the algorithms: the defaults, but for --set."""
    changes = dict(item.split("=") for item in filter(None, run.settings.split(",")))
    defaults = SearchPruner()
    return replace(defaults, **{key: type(getattr(defaults, key))(value) for key, value in changes.items()})


def macs(graph: Graph, masks: dict[str, torch.Tensor]) -> int:
    """Multiply-accumulates that are left: of the masks' weights, less those that read channels which filter pruning removed."""
    channels, total = flow(graph), 0
    gone = np.zeros(len(channels.lasting), bool)
    for layer in graph.prunable:
        if layer.params["weight"] in masks:
            gone[channels.of[layer.name][~masks[layer.params["weight"]].flatten(1).any(1).numpy()]] = True
    gone &= ~channels.lasting
    for layer in graph.prunable:
        kept = masks.get(layer.params["weight"], torch.ones(layer.weight_shape, dtype=torch.bool))
        if layer.attrs.get("groups", 1) == 1:
            kept = kept[:, torch.from_numpy(~gone[channels.reads[layer.name]])]
        total += round(int(kept.sum()) / math.prod(layer.weight_shape) * layer.macs)
    return total


def measure(run: Run, task: Task, dense: nn.Module, graph: Graph, folder: Path) -> dict[str, Any]:
    """Prune, fine-tune, evaluate: one row."""
    module, scheme, settings, start = task.model(), scheme_of(run, graph), settings_of(run), time.monotonic()
    module.load_state_dict(dense.state_dict())
    pruner = PRUNERS[run.algorithm](module, scheme, settings)
    pruner.prepare(task)
    checkpoint = folder / f"{run.digest}.pt"
    curve = fit(module, task, epochs=run.epochs, lr=run.lr, weight_decay=run.weight_decay, seed=run.seed, masks=pruner.masks, hooks=pruner, checkpoint=checkpoint)
    masks = {name: mask.cpu() for name, mask in pruner.masks.items()}
    check_zeros(module, scheme, masks)
    recalibrate_bn(module, task)
    total = sum(layer.macs for layer in graph.prunable)
    return asdict(run) | {
        "run": run.digest, "val": task.evaluate(module, "val"), "test": task.evaluate(module, "test"), "kept": share(masks, scheme),
        "macs_reduction": total / macs(graph, masks), "minutes": (time.monotonic() - start) / 60, "curve": curve,
    }  # fmt: skip


def share(masks: dict[str, torch.Tensor], scheme: Scheme) -> float:
    """Weights that stay over all weights of the pruned layers."""
    found = [masks[f"{path}.weight"] for path, layer in scheme.layers.items() if layer.pruning != "none" and f"{path}.weight" in masks]
    return sum(int(mask.sum()) for mask in found) / max(1, sum(mask.numel() for mask in found))


def table(rows: list[dict[str, Any]], dense: dict[str, float]) -> str:
    """Markdown: one row per algorithm, one column per scheme and rate, mean test accuracy over the seeds (val in brackets)."""
    columns = list(dict.fromkeys((row["scheme"], row["rate"]) for row in rows))
    lines = [["algorithm", *(f"{scheme} {rate:g}x" for scheme, rate in columns)]]
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        cells = [algorithm]
        for column in columns:
            found = [row for row in rows if row["algorithm"] == algorithm and (row["scheme"], row["rate"]) == column]
            cells.append(f"{mean(found, 'test')} ({mean(found, 'val')})" if found else "")
        lines.append(cells)
    macs_line = ["MACs", *(f"1/{next(row['macs_reduction'] for row in rows if (row['scheme'], row['rate']) == column):.2f}" for column in columns)]
    lines = [lines[0], ["---", *["---:"] * len(columns)], *lines[1:], macs_line]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nTest accuracy in percent (val in brackets). Dense: {100 * dense['test']:.2f} ({100 * dense['val']:.2f}).\n"


def mean(rows: list[dict[str, Any]], key: str) -> str:
    """Percent."""
    return f"{100 * sum(row[key] for row in rows) / len(rows):.2f}"


def main() -> None:
    """Run what isn't in the journal yet; write the table after every run."""
    options = parsed()
    place("cifar10")  # before anything else: without the data, one sentence
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    task = task_of(options)
    dense = task.model().eval()
    graph = trace(dense, task.example())
    wanted = list(runs(options))
    with Journal(options.out / "pruners.jsonl") as journal:
        accuracy = next((row for row in journal.rows if row["run"] == f"dense {options.model}"), None)
        if accuracy is None:
            accuracy = {"run": f"dense {options.model}", "val": task.evaluate(dense, "val"), "test": task.evaluate(dense, "test")}
            journal.append(accuracy)
        for number, run in enumerate(wanted, 1):
            if not any(row["run"] == run.digest for row in journal.rows):
                journal.append(measure(run, task, dense, graph, options.out))
                (options.out / f"{run.digest}.pt").unlink(missing_ok=True)
            row = next(row for row in journal.rows if row["run"] == run.digest)
            print(f"{number}/{len(wanted)}  {run.scheme} {run.rate:g}x  {run.algorithm}  seed {run.seed}  test {100 * row['test']:.2f}  val {100 * row['val']:.2f}  {row['minutes']:.1f} min", file=sys.stderr)
            done = [row for row in journal.rows if row["run"] in {other.digest for other in wanted}]
            text = table(done, accuracy)
            write_json(options.out / "pruners.json", {"command": sys.argv, "dense": accuracy, "rows": done})
            write_atomic(options.out / "pruners.md", lambda path, text=text: path.write_text(text))
    print(text)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="resnet20 or resnet56")
    parser.add_argument("--algorithms", default="all", help=f"comma-separated: {', '.join(NAMES)}")
    parser.add_argument("--scheme", default="block-punched/8", help="filter, pattern/8, block-punched/8")
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--grid", action="store_true", help="every scheme of --schemes at every rate of --rates")
    parser.add_argument("--schemes", default=GRID_SCHEMES)
    parser.add_argument("--rates", default=GRID_RATES)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-limit", type=int, default=0, help="use only so many training images (0: all)")
    parser.add_argument("--precision", default="bfloat16", help="of training steps: bfloat16 or float32")
    parser.add_argument("--skip", default="", help="layers that stay dense, comma-separated, e.g. conv1")
    parser.add_argument("--set", default="", help="tunables of search_pruner, e.g. dais_lr=0.1,lasso_strength=2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder of the journal, pruners.json and pruners.md")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except NpasError as error:
        sys.exit(f"{error.message} {error.hint}")
