"""What stays makes up for what goes: the weights that a mask leaves are fitted to what the whole layer computed, before any training. Imports graph and schemes of npas, and torch.

A layer computes y = W p + b from patches p of its input. Within a mask the weights that come closest, min E |(W - W') (p - mean)|^2, are a least squares problem for each filter, whatever the
scheme (He, Zhang and Sun 2017, section 3.1, for input channels; Frantar and Alistarh 2022, section 3, for any mask); the bias, or the batch norm behind when its statistics are estimated anew, takes up the
difference of the means. It needs the patches' covariance, one pass of the dense network over some images; their labels play no part. Conjugate gradients solve it for all filters of a
layer at once. Each layer is fitted to inputs as the dense network has them: fitting to those of the layers already pruned, one after the other, follows the few images too closely
(MobileNetV2 at 1.5x, 256 images: 26 % instead of 42 %, and 29 % without any fitting).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.graph import Graph
from stages.graph.flow import flow
from stages.graph.layer import Layer
from stages.graph.orders import column_orders
from stages.schemes.patches import PatchDrawer, watch
from stages.schemes.scheme import Scheme
from stages.schemes.shrinkage import shrinkage

PATCHES = 4096  # of each layer
WIDE = 2048  # numbers in a patch beyond which so many patches are kept instead of their covariance: never more memory than 17 MB times the patch's size over WIDE
LARGE = 8_000_000  # weights beyond which a layer is left alone: VGG's linear layers would take minutes, and lose the least
STEPS = 20  # of conjugate gradients; more of them change nothing that accuracy shows


@dataclass(frozen=True)
class Reads:
    """Second moments of the patches (D numbers each) that one layer reads, drawn towards equal variances as far as is best for so few samples (shrinkage.py).

    The covariance is (1 - ``shrunk``) C + ``shrunk`` trace(C) / D, with C = ``root`` (D, D) itself where ``whole``, else ``root``^T ``root`` of (n, D). All float32.
    """

    mean: Tensor
    root: Tensor
    shrunk: float
    whole: bool

    @property
    def variances(self) -> Tensor:
        """(D,)."""
        own = self.root.diagonal() if self.whole else self.root.square().sum(0)
        return (1 - self.shrunk) * own + self.shrunk * own.mean()

    def times(self, rows: Tensor) -> Tensor:
        """(F, D) times the covariance."""
        own = rows @ self.root if self.whole else (rows @ self.root.T) @ self.root
        trace = self.root.diagonal().sum() if self.whole else self.root.square().sum()
        return (1 - self.shrunk) * own + self.shrunk * trace / len(self.mean) * rows

    def ordered(self, columns: Tensor) -> Reads:
        """Of a layer that reads the same numbers in another order: ``columns[k]`` (D,) is what came to place k."""
        root = self.root[:, columns]
        return Reads(self.mean[columns], root[columns] if self.whole else root, self.shrunk, self.whole)


class _Learner:
    """Gathers the moments of one layer, batch by batch."""

    def __init__(self, number: int, images: int):
        self.number, self.images, self.count = number, images, 0
        self.total, self.squares, self.kept = torch.zeros(0), torch.zeros(0), list[Tensor]()
        self.draw: PatchDrawer | None = None

    def __call__(self, layer: nn.Module, inputs: Tensor) -> None:
        size = layer.weight[0].numel()  # type: ignore[union-attr, operator, index]
        if self.draw is None:
            self.draw = PatchDrawer(self.number, -(-(PATCHES if size <= WIDE else WIDE) // self.images))
        patches = self.draw(layer, inputs).flatten(0, 1).float()
        if size > WIDE:
            self.kept.append(patches)
            return
        if not self.count:
            self.total, self.squares = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        self.count += len(patches)
        self.total += patches.sum(0, dtype=torch.float64)
        self.squares += patches.double().T @ patches.double()

    def reads(self) -> Reads:
        if self.kept:
            patches = torch.cat(self.kept)
            mean = patches.mean(0)
            root = (patches - mean) / len(patches) ** 0.5
            square = float((root @ root.T).double().square().sum())
            return Reads(mean, root, shrinkage(len(mean), len(patches), float(root.double().square().sum()), square), False)
        mean = self.total / self.count
        covariance = self.squares / self.count - mean[:, None] * mean
        return Reads(mean.float(), covariance.float(), shrinkage(len(mean), self.count, float(covariance.trace()), float(covariance.square().sum())), True)


def learn_reads(network: nn.Module, graph: Graph, images: Iterable[Tensor], count: int) -> dict[str, Reads]:
    """For each prunable layer (by module path) of ``network`` what it reads, from one pass over ``images``, batches of its inputs, ``count`` in all. Deterministic.

    Only plain nn.Conv2d (zero padding) and nn.Linear, for what others do with their weights isn't known, and of at most LARGE weights.
    """
    small = dict.fromkeys(layer.module for layer in graph.prunable if prod(layer.weight_shape) <= LARGE)
    plain = [path for path in small if _is_plain(network.get_submodule(path))]
    learners = {path: _Learner(number, count) for number, path in enumerate(plain)}
    watch(network, learners, images)
    return {path: learner.reads() for path, learner in learners.items() if learner.draw}


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.padding_mode == "zeros")


@torch.no_grad()
def compensate_(module: nn.Module, graph: Graph, scheme: Scheme, masks: Mapping[str, Tensor], reads: Mapping[str, Reads], orders: Mapping[str, Any] = {}) -> None:
    """Fit what ``masks`` leave of each layer of ``reads`` to the layer's outputs, in place; the unpruned ``module`` still has its full weights. What the masks exclude is left for them to clear.

    A layer that reads channels which filter pruning removes is fitted without them, pruned itself or not. ``graph`` is the module's; ``orders`` tells which of its channels were reordered since
    ``reads`` was learnt (``regroup_``'s result). Layers that are unknown to ``reads``, or have another shape there, stay as they are.
    """
    tensors, dead, columns = module.state_dict(), dead_columns(graph, scheme, masks), column_orders(graph, orders)
    for layer in graph.prunable:
        name, known = layer.params["weight"], reads.get(layer.module)
        if known is None or name not in tensors or tensors[name][0].numel() != len(known.mean):
            continue
        weight = tensors[name].cpu().flatten(1)
        area = weight.shape[1] // tensors[name].shape[1]
        mask = masks[name].cpu().flatten(1) if name in masks else torch.ones_like(weight, dtype=torch.bool)
        if name in dead:
            mask = mask & torch.from_numpy(~dead[name]).repeat_interleave(area)
        if mask.all():
            continue
        if name in columns:
            places = torch.from_numpy(columns[name])[:, None] * area + torch.arange(area)
            known = known.ordered(places.flatten())
        bias = layer.params.get("bias")
        fitted = fit_rows(weight, mask, known, centred=bias is not None or _normalised(layer, graph))
        if bias is not None:
            tensors[bias] += ((weight - fitted) @ known.mean).to(tensors[bias])
        tensors[name].copy_(torch.where(mask, fitted, weight).view_as(tensors[name]))


def fit_rows(weight: Tensor, mask: Tensor, reads: Reads, centred: bool = True, steps: int = STEPS) -> Tensor:
    """For each row of ``weight`` (F, D) the row within ``mask`` that comes closest to it over the patches; without ``centred`` their mean counts too, since nothing else would make up for it."""

    def covariance(rows: Tensor) -> Tensor:
        return reads.times(rows) + (0 if centred else (rows @ reads.mean)[:, None] * reads.mean)

    scale = 1 / (reads.variances + (0 if centred else reads.mean.square())).clamp_min(torch.finfo(torch.float32).tiny)
    fitted = weight * mask
    residual = covariance(weight - fitted) * mask
    direction = preconditioned = residual * scale
    product = (residual * preconditioned).sum(1, keepdim=True)
    for _ in range(steps):
        moved = covariance(direction) * mask
        curvature = (direction * moved).sum(1, keepdim=True)
        step = torch.where(curvature > 0, product / curvature, 0)
        fitted, residual = fitted + step * direction, residual - step * moved
        preconditioned = residual * scale
        last, product = product, (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(last > 0, product / last, 0) * direction
    return fitted


def dead_columns(graph: Graph, scheme: Scheme, masks: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """For each prunable layer's weight that reads channels which filter pruning removes: which of its columns do, bool."""
    traced = flow(graph)
    gone = np.zeros(len(traced.lasting), bool)
    for layer in graph.prunable:
        mask = masks.get(layer.params["weight"])
        if mask is not None and scheme[layer.module].pruning == "filter" and layer.name in traced.reads:  # not what reads along another axis than channels
            gone[traced.of[layer.name][~mask.cpu().flatten(1).any(1).numpy()]] = True
    gone &= ~traced.lasting
    found = {layer.params["weight"]: gone[traced.reads[layer.name]] for layer in graph.prunable if layer.name in traced.reads}
    return {name: columns for name, columns in found.items() if columns.any()}


def _normalised(layer: Layer, graph: Graph) -> bool:
    return any(other.op == "batch_norm" and layer.name in other.inputs for other in graph)
