"""Which channels live and die together: the classes that filter pruning must treat as one. Imports graph values only, no torch.

Two layers share a class when removing output channel c of one removes channel c of the other: a convolution and the batch norm, activation, pooling and depthwise
convolution behind it, both sides of a residual sum, a tensor and its squeeze-and-excitation gate. A class is fixed (None) when a channel can't be removed:
the network's input and outputs, concatenations, grouped convolutions, reshapes that mix channels with pixels, and places where a removed channel would not be exactly zero.
"""

from __future__ import annotations

from stages.graph.layer import ACTIVATIONS, Graph, Layer

_FIXED = "fixed"
_KEEPS_ZERO = frozenset({"relu", "relu6", "hardswish", "leaky_relu", "silu", "gelu", "tanh", "mish", "elu"})  # f(0) = 0
_POOLING = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")


class _Classes:
    """Union-find over layer names."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {_FIXED: _FIXED}

    def find(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, *names: str) -> None:
        roots = sorted({self.find(name) for name in names}, key=lambda r: r != _FIXED)  # the fixed class absorbs
        for root in roots[1:]:
            self.parent[root] = roots[0]


def _follows(layer: Layer, graph: Graph) -> bool:
    """Whether the output's channels are the (first) input's channels, one to one."""
    if layer.op in ("batch_norm", *_POOLING) or layer.op in ACTIVATIONS:
        return True
    if layer.op in ("add", "sub", "mul", "div") and "value" in layer.attrs:
        return True
    source = graph[layer.inputs[0]].shape if layer.inputs else ()
    if layer.op == "mean":
        return len(source) == 4 and tuple(layer.attrs["dims"]) == (2, 3)
    if layer.op in ("flatten", "reshape"):  # (N, C, 1, 1) <-> (N, C)
        return len(source) >= 2 and len(layer.shape) >= 2 and source[:2] == layer.shape[:2] and all(d == 1 for d in (*source[2:], *layer.shape[2:]))
    if layer.op == "conv2d":
        return layer.is_depthwise and layer.attrs["out_channels"] == layer.attrs["in_channels"]
    return False


def _join(layer: Layer, graph: Graph, classes: _Classes) -> None:
    same = [n for n in layer.inputs if len(graph[n].shape) == len(layer.shape) > 1 and graph[n].shape[1] == layer.shape[1]]
    if _follows(layer, graph):
        classes.join(layer.name, layer.inputs[0])
    elif layer.op in ("add", "sub", "mul") and len(layer.inputs) == 2 and same:
        classes.join(layer.name, *same)
        classes.join(_FIXED, *(n for n in layer.inputs if n not in same))
    elif layer.op == "linear":
        if len(layer.shape) != 2:
            classes.join(_FIXED, layer.name, *layer.inputs)
    elif layer.op != "conv2d" or layer.attrs["groups"] != 1:
        classes.join(_FIXED, layer.name, *layer.inputs)


def _zero(layer: Layer, zero: dict[str, bool]) -> bool:
    """Whether a removed channel carries exact zeros behind this layer."""
    inputs = [zero[n] for n in layer.inputs]
    if layer.op in ("conv2d", "linear"):
        return True
    if layer.op == "batch_norm":
        return {"weight", "bias"} <= set(layer.params)  # masked with the class: 0 * x + 0
    if layer.op in ACTIVATIONS:
        clips = layer.op == "hardtanh" and layer.attrs.get("min", -1) <= 0 <= layer.attrs.get("max", 1)
        return all(inputs) and (layer.op in _KEEPS_ZERO or clips)
    if layer.op == "mul":
        return any(inputs)
    if "value" in layer.attrs:
        return all(inputs) and (layer.op == "div" or layer.attrs["value"] == 0)
    return bool(inputs) and all(inputs)


def channel_classes(graph: Graph) -> dict[str, int | None]:
    """For each layer, the class of its output's dimension 1, or None where every channel must stay. Classes are numbered in order of appearance."""
    classes, zero = _Classes(), {layer.name: False for layer in graph}
    for layer in graph:
        zero[layer.name] = _zero(layer, zero)
        _join(layer, graph, classes)
        mixes = layer.op == "linear" or (layer.op == "conv2d" and not _follows(layer, graph))
        if mixes and not zero[layer.inputs[0]]:
            classes.join(_FIXED, layer.inputs[0])  # a removed channel would still add a constant here
        if (layer.op in ("conv2d", "linear", "batch_norm") and not layer.module) or (layer.op == "batch_norm" and not zero[layer.name]):
            classes.join(_FIXED, layer.name)
    classes.join(_FIXED, *graph.outputs)
    _join_shared(graph, classes)
    numbers: dict[str, int] = {}
    roots = {layer.name: classes.find(layer.name) for layer in graph}
    return {name: None if root == classes.find(_FIXED) else numbers.setdefault(root, len(numbers)) for name, root in roots.items()}


def _join_shared(graph: Graph, classes: _Classes) -> None:
    """A module that is called twice prunes both results alike (and both inputs of a convolution, whose weights are shared too)."""
    first: dict[str, Layer] = {}
    for layer in graph:
        if layer.params and layer.op != "constant":
            other = first.setdefault(layer.params.get("weight", layer.name), layer)
            if other is not layer:
                classes.join(layer.name, other.name)
                classes.join(layer.inputs[0], other.inputs[0])


_KINDS = ("conv2d", "linear", "depthwise", "batch_norm")


def couplings(graph: Graph) -> tuple[dict[str, str], ...]:
    """The removable channel classes as Scheme.coupled wants them: module path -> kind (conv2d, linear, depthwise, batch_norm), in order of appearance.

    Example, a residual block: ``({"conv1": "conv2d", "bn1": "batch_norm"}, {"stem": "conv2d", "conv2": "conv2d", "bn2": "batch_norm"})``.
    """
    found: dict[int, dict[str, str]] = {}
    numbers = channel_classes(graph)
    for layer in graph:
        number, kind = numbers[layer.name], "depthwise" if layer.is_depthwise else layer.op
        if number is not None and kind in _KINDS:
            found.setdefault(number, {})[layer.module] = kind
    return tuple(members for members in found.values() if {"conv2d", "linear"} & set(members.values()))
