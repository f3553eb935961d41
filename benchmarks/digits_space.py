"""A small search space of which every candidate was evaluated once: 1,000 pruned versions of a convolutional network for digits. regret.py plays the strategies on it.

``enumerate_space()`` evaluates what benchmarks/data/digits_space.jsonl lacks (one line a candidate, appended as it is done; 15 minutes of one core), ``load()`` reads it.
A candidate is pruned in one shot, retrained on 600 digits for one pass, its batch norms are estimated anew, and it is evaluated on the 597 images of val and test.
Its latency is that of the compiled network over that of the dense one in the same interleaved rounds: the median over sessions before and after the training, more where they disagree.

``figure`` of the evaluation: "probability" is the mean probability that the network gives to the true class, i.e. the accuracy it would have if it drew its answers from its softmax.
"top1" is the usual accuracy: 597 images give it steps of 0.17 %, so that dozens of good candidates tie. The regret is therefore taken of "probability".
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.search import Costs, Space, Trial
from stages.search.space import Choices, LabelledGraph

TABLE = Path(__file__).parent / "data" / "digits_space.jsonl"
RATES = (2.0, 2.5, 4.0, 6.0)
FULL = ("none", "filter 2x", "block-punched/8 2.5x", "pattern/8 4x", "block-punched/8 6x")
LAYERS = {  # module -> (kind, choices): what stages.search.scheme_space would offer, thinned out until every combination can be evaluated
    "0.1.0": ("conv2d 3x3 2^20", ("none", "filter 2x", "block-punched/8 2.5x", "block-punched/8 6x")),
    "0.2.0": ("conv2d 3x3 2^21", FULL),
    "0.3.0": ("conv2d 3x3 2^20", FULL),
    "0.4.0": ("conv2d 3x3 2^21", FULL),
    "0.5.0": ("conv2d 1x1 2^19", ("none", "block-punched/8 4x")),
}
SHARE = 0.25  # of the candidates that meet the budget
MARGIN = 0.05  # a candidate slower than the budget by more than this share isn't trained (search_scheme.margin)
RUNS, AGREE, SESSIONS = 100, 0.02, 7  # timed rounds a session; sessions that differ by more are repeated, up to so many


@dataclass(frozen=True)
class Table:
    """Every candidate's figure and latency (as a share of dense), and the budget on the latter that SHARE of them meet."""

    space: Space
    accuracy: dict[Choices, float]
    latency: dict[Choices, float]
    budget: float

    def trial(self, choices: Choices) -> Trial:
        """What the search's loop would have told of the candidate: beyond budget * (1 + MARGIN) it isn't trained."""
        latency = self.latency[choices]
        trained = latency <= self.budget * (1 + MARGIN)
        return Trial(choices, self.accuracy[choices] if trained else None, latency, "complete" if latency <= self.budget else "infeasible")

    def singles(self) -> list[Choices]:
        """The dense network (each slot's first choice), then every candidate that differs from it in one layer."""
        dense = tuple(slot[0] for slot in self.space.slots)
        return [dense, *((*dense[:i], c, *dense[i + 1 :]) for i, slot in enumerate(self.space.slots) for c in slot[1:])]

    def costs(self) -> Costs:
        """What each layer's choices do alone, from ``singles``: the estimates that an integer program starts from."""
        dense, *_ = self.singles()
        rows = [[(*dense[:i], c, *dense[i + 1 :]) for c in slot] for i, slot in enumerate(self.space.slots)]
        loss = tuple(tuple(self.accuracy[dense] - self.accuracy[c] for c in row) for row in rows)
        return Costs(loss, tuple(tuple(self.latency[c] - self.latency[dense] for c in row) for row in rows), self.latency[dense])

    def feasible(self) -> list[tuple[float, Choices]]:
        """(figure, candidate) of all that meet the budget, the best first."""
        return sorted(((self.accuracy[c], c) for c, ms in self.latency.items() if ms <= self.budget), reverse=True)


def labelled(choices: Choices) -> LabelledGraph:
    """The graph of a candidate for the WL kernel, as scheme_space makes it: a chain of layers, and beside it whether each is pruned at least so hard."""
    rates = [float(str(c).split()[-1].rstrip("x")) if c != "none" else 1.0 for c in choices]
    nodes = [f"{kind}|{c}" for (kind, _), c in zip(LAYERS.values(), choices, strict=True)]
    steps = [f"{i} {'>=' if r >= rate else '<'} {rate:g}x" for i, r in enumerate(rates) for rate in RATES]
    return nodes + steps, [(i - 1, i) for i in range(1, len(nodes))]


def rows() -> list[dict[str, Any]]:
    """The table's lines; one that a kill cut short doesn't count."""
    if not TABLE.exists():
        return []
    return [json.loads(line) for line in TABLE.read_text().split("\n")[:-1]]


def load(figure: str = "probability") -> Table:
    """The whole table. ``figure``: probability or top1."""
    slots = [choices for _, choices in LAYERS.values()]
    space = Space(slots, labelled)
    found = {space.decode(row["at"]): row for row in rows()}
    if len(found) < space.size:
        raise SystemExit(f"{TABLE} holds {len(found)} of {space.size} candidates: run benchmarks/regret.py --enumerate.")
    latency = {c: row["latency"] for c, row in found.items()}
    return Table(space, {c: row[figure] for c, row in found.items()}, latency, float(np.quantile(list(latency.values()), SHARE)))


def network(num_classes: int = 10) -> Any:
    """Six convolutions, 8 million multiply-accumulates at 3x16x16."""
    from torch import nn

    from stages.tasks.zoo import conv_bn

    features = nn.Sequential(conv_bn(3, 16, 3), conv_bn(16, 32, 3), conv_bn(32, 32, 3), conv_bn(32, 64, 3, 2), conv_bn(64, 64, 3), conv_bn(64, 128, 1))
    return nn.Sequential(*{"features": features, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "classifier": nn.Linear(128, num_classes)}.values())


def layer_scheme(label: str) -> Any:
    """The LayerScheme of a label: "block-punched/8 2.5x"."""
    from stages.schemes import DENSE, LayerScheme

    if label == "none":
        return DENSE
    pruning, rate = label.split()
    name, _, block = pruning.partition("/")
    return LayerScheme("keep", name, float(rate.rstrip("x")), int(block or 0))


def enumerate_space() -> None:
    """Evaluate every candidate that the table lacks, in an order that is shuffled, so that nothing that drifts during the quarter of an hour looks like structure."""
    space = Space([choices for _, choices in LAYERS.values()], labelled)
    everything = list(itertools.product(*(range(len(slot)) for slot in space.slots)))
    known = {tuple(row["at"]) for row in rows()}
    evaluate = Evaluation()
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("a") as file:
        for i in np.random.default_rng(0).permutation(len(everything)):
            at = everything[i]
            if at not in known:
                row = {"at": list(at)} | evaluate([str(c) for c in space.decode(at)])
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
                known.add(at)
                print(f"{len(known)}/{len(everything)}", row, flush=True)


class Evaluation:
    """The trained dense network, and what a candidate made of it is worth."""

    def __init__(self) -> None:
        import torch

        from stages.compiler import compile_model
        from stages.config import Task as TaskConfig
        from stages.graph import trace
        from stages.search.candidate import Candidates
        from stages.tasks import fit, make_task

        torch.set_num_threads(1)
        self.task = make_task(TaskConfig(model="benchmarks.digits_space:network", image_size=16, train_device="cpu", threads=1))
        module = self.task.model()
        fit(module, self.task, epochs=8, lr=0.004, weight_decay=0.02, label_smoothing=0.1, threads=1, evaluate=False)
        self.example = self.task.example()
        self.graph = trace(module.eval(), self.example)
        self.candidates = Candidates(module, self.graph)
        self.modules = [layer.module for layer in self.graph.prunable if layer.macs > 0.05 * self.graph.macs]
        self.folder = tempfile.TemporaryDirectory(prefix="npas-regret-")
        compile_model(module, self.example, threads=1, graph=self.graph).save(Path(self.folder.name, "dense.so"))
        print("dense", self.figures(module), self.modules, flush=True)

    def __call__(self, labels: list[str]) -> dict[str, float]:
        """The figures of the candidate with these choices, and its latency as a share of dense."""
        from stages.compiler import compile_model
        from stages.graph import couplings
        from stages.schemes import Scheme, prune_
        from stages.tasks import fit, recalibrate_bn

        assert len(labels) == len(self.modules)
        scheme = Scheme({m: layer_scheme(label) for m, label in zip(self.modules, labels, strict=True)}, couplings(self.graph))
        built = self.candidates.build(scheme)
        masks = prune_(built.module, built.scheme)
        compile_model(built.module, self.example, built.scheme, threads=1, graph=built.graph).save(Path(self.folder.name, "candidate.so"))
        ratios = [self.ratio()]
        fit(built.module, self.task, epochs=1, lr=0.003, limit=600, masks=masks, threads=1, evaluate=False)
        recalibrate_bn(built.module, self.task, limit=256)
        figures = self.figures(built.module)
        ratios.append(self.ratio())
        while max(ratios) - min(ratios) > AGREE * min(ratios) and len(ratios) < SESSIONS:
            ratios.append(self.ratio())
        return figures | {"latency": round(float(np.median(ratios)), 4), "spread": round(max(ratios) - min(ratios), 4), "sessions": len(ratios)}

    def figures(self, module: Any) -> dict[str, float]:
        """Over all images of val and test: the share that is classified rightly, and the mean probability of the true class."""
        import torch

        right, probability, count = 0, 0.0, 0
        with torch.no_grad():
            for batch in itertools.chain(self.task.batches("val"), self.task.batches("test")):
                outputs = module(self.task.inputs(batch))
                right += int((outputs.argmax(1) == batch.labels).sum())
                probability += float(outputs.softmax(1).gather(1, batch.labels[:, None]).sum())
                count += len(batch.labels)
        return {"top1": round(right / count, 5), "probability": round(probability / count, 5)}

    def ratio(self) -> float:
        """Latency of the candidate over that of the dense network, by the medians of one session of interleaved rounds."""
        from stages.devices import TimingProtocol, open_device

        models = [Path(self.folder.name, name) for name in ("candidate.so", "dense.so")]
        measured = open_device("host").measure(models, [self.example.numpy()], TimingProtocol(runs=RUNS, warmup_seconds=0.05))
        candidate, dense = np.median(np.array(measured.samples_ms), axis=1)
        return float(candidate / dense)
