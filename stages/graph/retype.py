"""Filter types on modules: convolutions become small nn.Sequentials that can be trained, copied and saved. Imports errors and graph only of npas, and torch.

``retype_`` edits the network and its Graph together, without a new trace. ``retype_modules_`` needs no Graph: it replays recorded types onto a fresh network (stages.tasks.models).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stages.errors import UsageError
from stages.graph.filter_types import Part, legal_types, parts, retype_graph
from stages.graph.layer import Graph


def retype_(module: nn.Module, graph: Graph, types: Mapping[str, str]) -> Graph:
    """Give the convolutions at the module paths ``types`` other filter types, in place; returns the new network's Graph, an edit of ``graph``.

    The new weights are drawn as nn.Conv2d does, from a fixed seed; stages.search.reconstruct has better ones. UsageError, before anything is changed, names a layer that can't take its type.
    """
    edited = retype_graph(graph, types)
    retype_modules_(module, types)
    return edited


def retype_modules_(module: nn.Module, types: Mapping[str, str]) -> None:
    """``retype_`` on the module alone; the types are taken to be legal. UsageError names a path without a convolution."""
    found = {path: _convolution(module, path) for path, kind in types.items() if kind != "keep"}
    for path, conv in found.items():
        module.set_submodule(path, make(conv, types[path]))


def make(conv: nn.Conv2d, filter_type: str) -> nn.Sequential:
    """What stands in for ``conv``: its convolutions by their names in ``parts``, on its device, in its type and mode; empty for skip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        children: OrderedDict[str, nn.Module] = OrderedDict((part.name, _conv(part, conv)) for part in parts(conv_attrs(conv), filter_type))
    return nn.Sequential(children).train(conv.training)


def conv_attrs(conv: nn.Conv2d) -> dict[str, Any]:
    """What ``Layer.attrs`` of its call are."""
    padding = conv.padding
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    elif padding == "valid":
        padding = (0, 0)
    return {
        "stride": conv.stride, "padding": padding, "dilation": conv.dilation, "groups": conv.groups,
        "kernel": conv.kernel_size, "in_channels": conv.in_channels, "out_channels": conv.out_channels,
    }  # fmt: skip


def replaceable(module: nn.Module, graph: Graph) -> dict[str, tuple[str, ...]]:
    """Module path -> the filter types (more than "keep") that its convolution may take.

    What the Graph can't tell is seen by running the network once on zeros: the module is a plain nn.Conv2d under a single name, it is called as such, once, and so its weights aren't used past it.
    """
    legal = {layer.module: legal_types(layer, graph) for layer in graph.prunable}
    names = Counter(id(tensor) for _, tensor in module.named_parameters(remove_duplicate=False))
    modules = dict(module.named_modules())
    plain = {path: m for path, m in modules.items() if type(m) is nn.Conv2d and m.padding_mode == "zeros" and names[id(m.weight)] == 1}
    calls = _calls(module, graph, plain)
    return {path: kinds for path, kinds in legal.items() if len(kinds) > 1 and calls[path] == 1}


def _calls(module: nn.Module, graph: Graph, found: Mapping[str, nn.Conv2d]) -> Counter[str]:
    """How often each of the modules ``found`` is called in one pass, with one tensor."""
    counts: Counter[str] = Counter()
    first = next(iter(found.values()), None)
    if first is None:
        return counts

    def count(path: str) -> Any:
        return lambda _, inputs: counts.update([path]) if len(inputs) == 1 else None

    hooks = [conv.register_forward_pre_hook(count(path)) for path, conv in found.items()]
    modes = [(m, m.training) for m in module.modules()]
    try:
        with torch.no_grad():
            module.eval()(*(torch.zeros(layer.shape, dtype=first.weight.dtype, device=first.weight.device) for layer in graph.inputs))
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
    return counts


def _convolution(module: nn.Module, path: str) -> nn.Conv2d:
    try:
        found = module.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Conv2d):
        raise UsageError(f"The network has no convolution '{path}' whose filter type could change.", "The network has changed since: run 'npas search-scheme' again.")
    return found


def _conv(part: Part, like: nn.Conv2d) -> nn.Conv2d:
    a = part.attrs
    return nn.Conv2d(
        a["in_channels"], a["out_channels"], a["kernel"], a["stride"], a["padding"], a["dilation"], a["groups"], part.bias,
        device=like.weight.device, dtype=like.weight.dtype,
    )  # fmt: skip
