"""Purification: remove what pruning has made redundant (AutoCompress, Liu et al. 2020, section 3.4), where that changes nothing. Imports torch and graph of npas.

It may follow any algorithm and only adds zeros: masks and scheme hold as before, and the compiler, which goes by exact zeros, leaves out the channels that became empty.
AutoCompress also removes what is nearly redundant and trains again; here everything that is removed had no effect, so nothing needs to be trained.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from stages.graph import Graph, Layer
from stages.graph.flow import Flow, flow

_OWNERS = ("conv2d", "linear", "batch_norm")  # layers with a row of weights for each channel


@torch.no_grad()
def purify_(module: nn.Module, graph: Graph) -> dict[str, int]:
    """Set to 0, in place, what has no effect on the outputs; returns how many non-zero weights each tensor lost, by its name in the state_dict.

    Until nothing changes: a channel that no layer reads with a weight other than 0 loses its filter, bias, batch norm and depthwise kernel; a channel all of whose own weights are 0 loses
    the weights that read it. ``graph`` is the module's trace.
    """
    tensors, channels = module.state_dict(), flow(graph)
    before = {name: int(torch.count_nonzero(tensor)) for name, tensor in tensors.items() if tensor.is_floating_point()}
    left = -1
    while left != (left := sum(int(torch.count_nonzero(tensors[name])) for name in before)):
        _clear(_owned(graph, channels), tensors, ~_read(graph, channels, tensors) & ~channels.lasting, rows=True)
        _clear(_readers(graph, channels), tensors, ~_made(graph, channels, tensors) & ~channels.lasting, rows=False)
    lost = {name: count - int(torch.count_nonzero(tensors[name])) for name, count in before.items()}
    return {name: count for name, count in lost.items() if count}


def _owned(graph: Graph, channels: Flow) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor that has a row for each channel of a layer's result, with those channels."""
    for layer in graph:
        if layer.op in _OWNERS and layer.name in channels.of:
            for key in ("weight", "bias"):
                if key in layer.params:
                    yield layer.params[key], channels.of[layer.name]


def _readers(graph: Graph, channels: Flow) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight that has a column for each channel of a layer's input, with those channels; grouped convolutions have none for most."""
    for layer in graph:
        if layer.name in channels.reads and _dense(layer):
            yield layer.params["weight"], channels.reads[layer.name]


def _dense(layer: Layer) -> bool:
    return "weight" in layer.params and layer.attrs.get("groups", 1) == 1


def _read(graph: Graph, channels: Flow, tensors: dict[str, Tensor]) -> np.ndarray:
    """Which channels some layer reads with a weight other than 0."""
    found = np.zeros(len(channels.lasting), bool)
    for layer in graph:
        ids = channels.reads.get(layer.name)
        if ids is not None:
            columns = tensors[layer.params["weight"]].transpose(0, 1).flatten(1).any(1).cpu().numpy() if _dense(layer) else np.ones(len(ids), bool)
            found[ids[columns]] = True
    return found


def _made(graph: Graph, channels: Flow, tensors: dict[str, Tensor]) -> np.ndarray:
    """Which channels have any weight of their own that is not 0."""
    found = np.zeros(len(channels.lasting), bool)
    for name, ids in _owned(graph, channels):
        found[ids[tensors[name].reshape(len(ids), -1).any(1).cpu().numpy()]] = True
    return found


def _clear(parts: Iterator[tuple[str, np.ndarray]], tensors: dict[str, Tensor], dead: np.ndarray, rows: bool) -> None:
    """Zero the rows, or columns, of dead channels."""
    for name, ids in parts:
        places = torch.from_numpy(np.flatnonzero(dead[ids])).to(tensors[name].device)
        tensors[name].index_fill_(0 if rows else 1, places, 0)
