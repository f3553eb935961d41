"""The first step: which layers of a network its tasks will have in common. And may a further network join? Imports torch, errors, graph, schemes and tasks of npas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stages.errors import UsageError
from stages.graph import Graph
from stages.lifelong.commons import FREE, Commons, Part
from stages.schemes import uniform_scheme
from stages.schemes.units import Units
from stages.tasks.models import mismatch

LEAST_UNITS = 8  # of a group: a layer with fewer is too small to be divided, and each task has its own


def found(module: nn.Module, graph: Graph, model: str, block: int, replacements: Sequence[Mapping[str, Any]] = ()) -> Commons:
    """The commons of an untrained network, all of it free: the weights of every convolution (groups = 1) and linear layer but the heads. UsageError when there is none."""
    heads, tensors, parts = head_tensors(graph), module.state_dict(), {}
    for path, layer in uniform_scheme(graph, "block-punched", 2.0, block).layers.items():
        name = f"{path}.weight"
        if name in tensors and layer.pruning != "none" and name not in heads:
            sums = Units({name: tensors[name].shape}, 0, block).sums(tensors)
            if sums.shape[1] >= LEAST_UNITS:
                parts[path] = Part(layer, torch.zeros_like(tensors[name]), torch.full(sums.shape, FREE, dtype=torch.int16))
    if not parts:
        raise UsageError(f"The network '{model}' has no layer that tasks could share.", "Convolutions without groups and linear layers can be shared, but not the last one.")
    return Commons(model, tuple(graph.inputs[0].shape[1:]), heads, parts, tuple(replacements))


def head_tensors(graph: Graph) -> tuple[str, ...]:
    """Tensors of the last layers: those whose results reach the output through no further convolution or linear layer. Their shapes depend on the task's classes."""
    names: list[str] = []
    seen, waiting = set(), list(graph.outputs)
    while waiting:
        layer = graph[waiting.pop()]
        if layer.name not in seen:
            seen.add(layer.name)
            names += layer.params.values()
            waiting += () if layer.op in ("conv2d", "linear") else layer.inputs
    return tuple(dict.fromkeys(names))


def check_fits(commons: Commons, module: nn.Module, shape: Sequence[int]) -> None:
    """UsageError unless inputs and network of a further task are those of the earlier ones, heads apart."""
    if tuple(shape) != commons.shape:
        wanted, given = ("x".join(map(str, s)) for s in (commons.shape, shape))
        raise UsageError(f"The tasks of this network take inputs of {wanted}, this one {given}.", "Set task.image_size to that of the first task.")
    learnt = next(iter(commons.tasks.values()))
    old = {key: torch.empty(part.shape, device="meta") for key, part in learnt.tensors.items()} | {f"{path}.weight": part.values for path, part in commons.parts.items()}
    own = module.state_dict()
    problem = mismatch(module, {key: own.get(key, value) if key in commons.heads else value for key, value in old.items()})
    if problem:
        raise UsageError(f"The network of this task isn't that of the earlier ones: {problem}.", f"Set task.model to {commons.model}.")
