"""What every pruning algorithm must do, for every scheme. A new algorithm is tested by its line in PRUNERS."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from training_kit import Killer

from stages.config import SearchPruner
from stages.config import Task as TaskConfig
from stages.graph import Graph, trace
from stages.progress import Silent
from stages.pruners import PRUNERS
from stages.schemes import LayerScheme, Scheme, apply_masks, check_zeros, uniform_scheme
from stages.tasks import fit, make_task, recalibrate_bn

SILENT = Silent()
EPOCHS = 4
SCHEMES = ("block-punched", "pattern", "filter", "mixed")


@cache
def task():
    return make_task(TaskConfig(model="npas_tiny", image_size=8, train_limit=64, batch_size=16, threads=1))


@cache
def dense() -> tuple[nn.Module, Graph]:
    module = task().model()
    fit(module, task(), epochs=2, lr=0.004, evaluate=False)
    return module, trace(module, task().example())


def scheme_of(kind: str) -> Scheme:
    graph = dense()[1]
    if kind != "mixed":
        return uniform_scheme(graph, kind, {"block-punched": 3.0, "pattern": 4.5, "filter": 2.0}[kind])
    filters = uniform_scheme(graph, "filter", 2.0)
    layers = {path: layer for path, layer in filters.layers.items() if path.startswith(("head", "blocks.1.layers.0", "blocks.1.layers.2.expand"))}
    return Scheme(layers | {"stem.0": LayerScheme("keep", "pattern", 3.0, 5), "classifier": LayerScheme("keep", "block-based", 10.0, 4)}, filters.coupled)


def run(
    algorithm: str, scheme: Scheme, checkpoint: Path | None = None, progress: Silent = SILENT, distill: float = 0.0
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    module = copy.deepcopy(dense()[0])
    pruner = PRUNERS[algorithm](module, scheme, SearchPruner())
    pruner.prepare(task())
    fit(module, task(), epochs=EPOCHS, lr=0.003, weight_decay=0.02, masks=pruner.masks, hooks=pruner, checkpoint=checkpoint, progress=progress, evaluate=False,
        teacher=dense()[0] if distill else None, distill=distill)  # fmt: skip
    return module, pruner.masks


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_least_squares_begins_closer_to_the_dense_network_than_magnitude() -> None:
    """Before any training, on images that it hasn't seen."""
    scheme, away = scheme_of("block-punched"), {}
    inputs = [task().inputs(batch) for batch in task().batches("val")]
    for algorithm in ("magnitude", "least-squares"):
        module = copy.deepcopy(dense()[0])
        pruner = PRUNERS[algorithm](module, scheme, SearchPruner())
        pruner.prepare(task())
        apply_masks(module, pruner.masks)
        check_zeros(module, scheme, pruner.masks)
        recalibrate_bn(module, task())
        with torch.no_grad():
            away[algorithm] = sum(float(task().distill_loss(module(x), dense()[0].eval()(x), 1.0)) for x in inputs)
    assert away["least-squares"] < 0.8 * away["magnitude"]


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("algorithm", PRUNERS)
def test_it_prunes_exactly_repeatably_and_resumes(algorithm, kind, tmp_path):
    scheme, before = scheme_of(kind), dense()[0].state_dict()
    reference = {name: tensor.clone() for name, tensor in before.items()}
    module, masks = run(algorithm, scheme)
    check_zeros(module, scheme, masks)
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {name: tensor.shape for name, tensor in before.items()}
    assert masks and all(tensor.isfinite().all() for tensor in module.state_dict().values())
    assert same(before, reference), "the dense network was touched"
    again, masks_again = run(algorithm, scheme)
    assert same(module.state_dict(), again.state_dict()) and same(masks, masks_again)
    for epoch in (1, 3):  # in the middle of the ramp, and after it
        checkpoint = tmp_path / f"{epoch}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(algorithm, scheme, checkpoint, Killer(epoch))
        resumed, masks_resumed = run(algorithm, scheme, checkpoint)
        assert same(module.state_dict(), resumed.state_dict()) and same(masks, masks_resumed), f"resumed after epoch {epoch}"


@pytest.mark.parametrize("algorithm", PRUNERS)
def test_it_learns_what_stays_with_distillation_too(algorithm):
    scheme, before = scheme_of("block-punched"), dense()[0].state_dict()
    module, masks = run(algorithm, scheme, distill=0.7)
    check_zeros(module, scheme, masks)
    for name, mask in masks.items():
        assert bool((module.state_dict()[name][mask] != before[name][mask]).any()), f"{name} was never trained"


@pytest.mark.parametrize("algorithm", PRUNERS)
def test_a_scheme_that_prunes_nothing_is_plain_training(algorithm):
    module, masks = run(algorithm, Scheme())
    plain = copy.deepcopy(dense()[0])
    fit(plain, task(), epochs=EPOCHS, lr=0.003, weight_decay=0.02, evaluate=False)
    assert masks == {} and same(module.state_dict(), plain.state_dict())
