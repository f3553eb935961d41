"""Distillation of features by kernel alignment (CAT, Jin et al. 2021, section 3.3): which layers, and the loss. Imports torch and graph of npas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.graph import Graph


def feature_layers(graph: Graph, module: nn.Module) -> tuple[str, ...]:
    """Paths of the submodules whose outputs are compared: for each resolution (height, width above 1) the last one of the outermost that end there, usually its last block.

    A submodule returns what its last layer computes; so a layer counts through the widest submodule that ends with it, and not at all outside of any.
    """
    modules, owner = dict(module.named_modules()), [layer.module.partition(":")[0] for layer in graph]
    last: dict[tuple[int, ...], str] = {}
    for number, layer in enumerate(graph):
        if len(layer.shape) != 4 or layer.shape[2] * layer.shape[3] == 1 or layer.op == "input":
            continue
        path = next((p for p in _enclosing(owner[number]) if p in modules and not any(_inside(o, p) for o in owner[number + 1 :])), "")
        if path and path.count(".") <= last.get(layer.shape[2:], path).count("."):
            last[layer.shape[2:]] = path
    return tuple(last.values())


def _enclosing(path: str) -> list[str]:
    """"a.b.c" -> ["a", "a.b", "a.b.c"]: the widest first."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


class Taps:
    """``with Taps(module, paths) as taps: module(x)``: afterwards ``taps.features`` are the outputs of those submodules, in order."""

    def __init__(self, module: nn.Module, paths: Sequence[str]):
        self.module, self.paths = module, paths
        self._found: dict[str, Tensor] = {}

    @property
    def features(self) -> list[Tensor]:
        """(N, ...) each."""
        return [self._found[path] for path in self.paths]

    def __enter__(self) -> Taps:
        self._handles = [self.module.get_submodule(path).register_forward_hook(self._keep(path)) for path in self.paths]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, path: str) -> Any:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            self._found[path] = output

        return hook


def kernel_alignment(x: Tensor, y: Tensor) -> Tensor:
    """<K, L> / (|K| |L|) of the Gram matrices K = X X', L = Y Y' over the batch: 1 when both see the same similarities between samples, however wide they are and in whatever order
    their channels are (stages/schemes/grouping.py). (N, ...), (N, ...) -> scalar.
    """
    with torch.autocast(x.device.type, enabled=False):
        k, m = (f @ f.T for f in (x.flatten(1).float(), y.flatten(1).float()))
        return (k * m).sum() / (k.norm() * m.norm()).clamp_min(torch.finfo(torch.float32).tiny)


def alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """1 - alignment, averaged over the layers; 0 when the features agree up to rotation and scale."""
    return torch.stack([1 - kernel_alignment(x, y) for x, y in zip(student, teacher, strict=True)]).mean()
