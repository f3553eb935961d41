"""Graph -> Program, one Step for each layer: every operator in terms of the few that have kernels. Fusion (fuse.py) and shrinking (shrink.py) come after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from stages.compiler import lower_elementwise, lower_layers, lower_shapes
from stages.compiler.ir import Program, Step
from stages.compiler.lowering import Lowering
from stages.graph.layer import ACTIVATIONS, Graph, Layer
from stages.schemes.scheme import Scheme


def lower(graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme) -> Program:
    """The Program of ``graph`` with weights from ``tensors`` (state_dict names). Raises UnsupportedOperator for what no rule below can express."""
    lowering = Lowering(graph, {**tensors, **graph.constants}, scheme)
    for layer in graph:
        if 0 in layer.shape:
            lowering.refuse(layer, f"{layer.op} with an empty result")
        RULES.get(layer.op, _unknown)(lowering, layer)
    return lowering.finish()


def _unknown(lo: Lowering, layer: Layer) -> None:
    lo.refuse(layer, layer.target or layer.op)


def _input(lo: Lowering, layer: Layer) -> None:
    shape = layer.shape if len(layer.shape) in (2, 4) else (layer.shape[0] if layer.shape else 1, prod(layer.shape[1:]))
    made = lo.new(layer, shape)
    lo.inputs.append((made.value, layer.shape))
    seen = made.reshaped(layer.shape) or made  # the caller's memory is in this order, whatever the rank
    lo.add(layer, Step(layer.name, "input", (f"input:{len(lo.inputs) - 1}",), made.value, {"index": len(lo.inputs) - 1}), seen)


def _constant(lo: Lowering, layer: Layer) -> None:
    pass  # read where it is used


RULES: dict[str, Callable[[Lowering, Layer], None]] = {
    "input": _input,
    "constant": _constant,
    "conv2d": lower_layers.conv,
    "linear": lower_layers.linear,
    "batch_norm": lower_elementwise.batch_norm,
    **dict.fromkeys(ACTIVATIONS, lower_elementwise.activation),
    **dict.fromkeys(("add", "sub", "mul", "div"), lower_elementwise.binary),
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), lower_layers.strided_pool),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), lower_layers.adaptive_pool),
    "mean": lower_layers.mean,
    **dict.fromkeys(("flatten", "reshape"), lower_shapes.reshape),
    "permute": lower_shapes.permute,
    "concat": lower_shapes.concat,
    "slice": lower_shapes.slice_part,
    "select": lower_shapes.select,
    "pad": lower_shapes.pad,
    "channel_shuffle": lower_shapes.channel_shuffle,
    "upsample_nearest2d": lower_shapes.upsample,
    "layer_norm": lower_layers.layer_norm,
    "softmax": lower_layers.softmax,
}
