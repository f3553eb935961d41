"""Filter types: what a convolution may become, as shapes and as an edit of the Graph. Imports errors and layer only, no torch.

NPAS section 5.2: {1x1, 3x3, 3x3 DW & 1x1, 1x1 & 3x3 DW & 1x1, skip}, one way, from larger to cheaper. Here a dense k x k convolution may take any of them that keeps its output's shape and
costs fewer multiply-accumulates; a 1x1 can only be skipped; depthwise, grouped and linear layers keep their type. Within a replacement there is neither batch norm nor activation: what it stands
in for is linear, so a linear chain is what approximates it best from the start, and separable convolutions learn better without an activation in between (Chollet 2017, Xception, section 4.7).
The layer's own batch norm and activation follow as before. The last convolution has a bias, which takes up the mean of what the replacement can't express.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stages.errors import UsageError
from stages.graph.layer import Graph, Layer

FILTER_TYPES = ("keep", "1x1", "3x3", "3x3dw-1x1", "1x1-3x3dw-1x1", "skip")
WIDTH_STEP = 8  # the bottleneck is a multiple of it: vector units like that
_UNIT = (1, 1)


@dataclass(frozen=True)
class Part:
    """One convolution of a replacement: the child's name in its nn.Sequential, its ``Layer.attrs``, and whether it has a bias."""

    name: str
    attrs: Mapping[str, Any]
    bias: bool = False


def bottleneck(attrs: Mapping[str, Any]) -> int:
    """Channels between the two 1x1 of 1x1-3x3dw-1x1: the smaller of both ends, rounded up to WIDTH_STEP.

    The chain is a CP decomposition of the k x k kernel of that rank (Lebedev et al. 2015): never less expressive than 3x3dw-1x1 where the layer doesn't narrow, at about twice its cost.
    """
    return -(-min(attrs["in_channels"], attrs["out_channels"]) // WIDTH_STEP) * WIDTH_STEP


def parts(attrs: Mapping[str, Any], filter_type: str) -> tuple[Part, ...]:
    """The convolutions that stand in for one with ``attrs``; () for skip.

    Kernels shrink round their centre: each takes the padding that leaves the output's size as it was. The stride is the depthwise convolution's, or that of the only one. ValueError when
    there is no such padding (a 1x1 for an unpadded 3x3, anything for an even kernel).
    """
    inputs, outputs, wide = attrs["in_channels"], attrs["out_channels"], bottleneck(attrs)
    if filter_type == "skip":
        return ()
    if filter_type in ("1x1", "3x3"):
        return (Part(*_shrunk("pw" if filter_type == "1x1" else "conv", attrs, filter_type, inputs, outputs), bias=True),)
    if filter_type == "3x3dw-1x1":
        return Part(*_shrunk("dw", attrs, "3x3", inputs, inputs, inputs)), Part("pw", _pointwise(inputs, outputs), bias=True)
    if filter_type == "1x1-3x3dw-1x1":
        return Part("mix", _pointwise(inputs, wide)), Part(*_shrunk("dw", attrs, "3x3", wide, wide, wide)), Part("pw", _pointwise(wide, outputs), bias=True)
    raise ValueError(f"'{filter_type}' is no replacement")


def _pointwise(inputs: int, outputs: int) -> dict[str, Any]:
    return {"stride": _UNIT, "padding": (0, 0), "dilation": _UNIT, "groups": 1, "kernel": _UNIT, "in_channels": inputs, "out_channels": outputs}


def _shrunk(name: str, attrs: Mapping[str, Any], size: str, inputs: int, outputs: int, groups: int = 1) -> tuple[str, dict[str, Any]]:
    """A smaller kernel at the same centre: what it loses on each side, the padding loses too."""
    kernel, dilation = ((1, 1), _UNIT) if size == "1x1" else ((3, 3), attrs["dilation"])
    lost = [k - n for k, n in zip(attrs["kernel"], kernel, strict=True)]
    padding = tuple(p - d * loss // 2 for p, d, loss in zip(attrs["padding"], attrs["dilation"], lost, strict=True))
    if any(loss < 0 or loss % 2 for loss in lost) or min(padding) < 0:
        raise ValueError(f"no {size} kernel takes the place of {attrs['kernel']} with padding {attrs['padding']}")
    made = {"stride": attrs["stride"], "padding": padding, "dilation": dilation, "groups": groups, "kernel": kernel, "in_channels": inputs, "out_channels": outputs}
    return name, made


def replacement(layer: Layer, source: Layer, filter_type: str) -> tuple[Layer, ...]:
    """The layers that stand in for the convolution ``layer``, which reads ``source``, as tracing would give them. ValueError as in ``parts``."""
    made: list[Layer] = []
    before = source
    for part in parts(layer.attrs, filter_type):
        path, a = f"{layer.module}.{part.name}", part.attrs
        size = (_output(n, a, i) for i, n in enumerate(before.shape[2:]))
        shape = (layer.shape[0], a["out_channels"], *size)
        params = {"weight": f"{path}.weight"} | ({"bias": f"{path}.bias"} if part.bias else {})
        macs = math.prod(shape) * a["in_channels"] // a["groups"] * math.prod(a["kernel"])
        before = Layer(path, "conv2d", (before.name,), shape, a, params, path, "aten.conv2d.default", macs)
        made.append(before)
    return tuple(made)


def _output(size: int, attrs: Mapping[str, Any], axis: int) -> int:
    span = attrs["dilation"][axis] * (attrs["kernel"][axis] - 1) + 1
    return (size + 2 * attrs["padding"][axis] - span) // attrs["stride"][axis] + 1


def legal_types(layer: Layer, graph: Graph) -> tuple[str, ...]:
    """The filter types that ``layer`` may take, "keep" first. ("keep",) for what is no plain convolution: grouped, linear, called twice, with shared weights, or with more in its module.

    "skip" (the input stands for the output) needs equal shapes, no stride, and a place within the network: neither at its input nor at its output, and nothing that overwrites in place what it would pass on.
    """
    return ("keep", *(kind for kind in FILTER_TYPES[1:] if _is_legal(kind, layer, graph))) if _is_plain(layer, graph) else ("keep",)


def _is_plain(layer: Layer, graph: Graph) -> bool:
    if layer.op != "conv2d" or layer.attrs["groups"] != 1 or not layer.module or layer.params["weight"] != f"{layer.module}.weight":
        return False
    within = [x for x in graph if x.module == layer.module or x.module.startswith(f"{layer.module}.")]
    return within == [layer] and sum(layer.params["weight"] in x.params.values() for x in graph) == 1


def _is_legal(filter_type: str, layer: Layer, graph: Graph) -> bool:
    source, kernel = graph[layer.inputs[0]], layer.attrs["kernel"]
    if filter_type == "skip":
        inside = source.op not in ("input", "constant") and layer.name not in graph.outputs
        return inside and source.shape == layer.shape and layer.attrs["stride"] == _UNIT and not any(map(_overwrites, graph.consumers[layer.name]))
    if max(kernel) < 3 or (filter_type != "1x1" and min(kernel) < 3) or (filter_type == "3x3" and kernel == (3, 3)):
        return False
    try:
        made = replacement(layer, source, filter_type)
    except ValueError:
        return False
    return sum(x.macs for x in made) < layer.macs


def _overwrites(layer: Layer) -> bool:
    """Whether a layer works in place, as nn.ReLU(inplace=True) does."""
    return layer.target.split(".")[1:2] != [] and layer.target.split(".")[1].endswith("_")


def retype_graph(graph: Graph, types: Mapping[str, str]) -> Graph:
    """The Graph with the convolutions at the module paths ``types`` replaced: what tracing the retyped network gives. UsageError names a layer that can't take its type."""
    wanted = {path: kind for path, kind in types.items() if kind != "keep"}
    for path, kind in wanted.items():
        layer = graph.by_name.get(path)
        if layer is None or kind not in legal_types(layer, graph):
            raise UsageError(f"Layer '{path}' can't become {kind}.", "stages.graph.legal_types tells what a layer may become.")
    layers: list[Layer] = []
    stands_for: dict[str, str] = {}
    made: dict[str, Layer] = {}
    for old in graph:
        layer = replace(old, inputs=tuple(stands_for.get(name, name) for name in old.inputs))
        if old.module in wanted:
            found = replacement(layer, made[layer.inputs[0]], wanted[old.module])
            stands_for[old.name] = found[-1].name if found else layer.inputs[0]
        else:
            found = (layer,)
        layers += found
        made |= {x.name: x for x in found}
    return replace(graph, layers=tuple(layers), outputs=tuple(stands_for.get(name, name) for name in graph.outputs))
