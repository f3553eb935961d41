"""Layer and Graph: what torch.export sees of a network, as plain immutable values. Imports numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

ACTIVATIONS = ("relu", "relu6", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "silu", "sigmoid", "gelu", "tanh", "mish", "elu", "softplus")


@dataclass(frozen=True)
class Layer:
    """One operation of the traced network, in canonical form.

    A worked example, the depthwise convolution of MobileNetV2's second block at 224x224::

        Layer(name="features.2.conv.1.0", op="conv2d", inputs=("features.2.conv.0.2",), shape=(1, 96, 56, 56),
              attrs={"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 96, "kernel": (3, 3)},
              params={"weight": "features.2.conv.1.0.weight"}, module="features.2.conv.1.0", target="aten.conv2d.default", macs=2709504)

    ``name`` is unique. A layer with parameters carries the path of its module ("features.2.conv.1.0"), and so does the call of a leaf module without any ("features.2.conv.0.2");
    any other carries the path of the innermost module that made the call, ":" and the fx node's name ("features.3:add"). A name that is taken gets ":2", ":3" and so on
    (a module that is called twice; its parameters are shared).

    ``op`` is one of: input; conv2d; linear; batch_norm; the names in ACTIVATIONS; add; sub; mul; div (two tensors, or a tensor and ``attrs["value"]``);
    max_pool2d, avg_pool2d (``kernel``, ``stride``, ``padding``, ``ceil_mode``, and ``count_include_pad`` for avg); adaptive_avg_pool2d, adaptive_max_pool2d (``size``); mean (``dims``, ``keepdim``);
    flatten (``start``, ``end``); reshape (``shape``); permute (``dims``); concat (``dim``); slice (``dim``, ``start``, ``stop``, ``step``); select (``dim``, ``index``);
    pad (``pad`` as in F.pad, ``value``); channel_shuffle (``groups``); upsample_nearest2d; layer_norm (``normalized_shape``, ``eps``); softmax (``dim``); constant;
    identity never appears (dropout in eval mode, contiguous and the like are dropped); anything else keeps ``op="unsupported"`` and its ``target`` says which operator it was.

    ``shape`` is the output's shape with the batch; ``shape[0]`` is the batch of the example. ``params`` maps a role (weight, bias, running_mean, running_var) to the tensor's name in the
    module's state_dict, or in ``Graph.constants``. ``macs`` are multiply-accumulates for the whole batch.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    module: str = ""
    target: str = ""
    macs: int = 0

    @property
    def is_depthwise(self) -> bool:
        """A grouped convolution in which every group has one input channel."""
        return self.op == "conv2d" and self.attrs["groups"] > 1 and self.attrs["in_channels"] == self.attrs["groups"]

    @property
    def is_prunable(self) -> bool:
        """Convolutions with groups = 1 and linear layers can be pruned; depthwise and grouped ones stay dense (design.md)."""
        return self.op == "linear" or (self.op == "conv2d" and self.attrs["groups"] == 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in / groups, kh, kw) of a convolution, (out, in) of a linear layer."""
        a = self.attrs
        if self.op == "conv2d":
            return (a["out_channels"], a["in_channels"] // a["groups"], *a["kernel"])
        return (a["out_features"], a["in_features"])

    def to_json(self) -> dict[str, Any]:
        """Plain data for graph.json."""
        return {
            "name": self.name, "op": self.op, "inputs": list(self.inputs), "shape": list(self.shape),
            "attrs": {k: list(v) if isinstance(v, tuple) else v for k, v in self.attrs.items()},
            "params": dict(self.params), "module": self.module, "target": self.target, "macs": self.macs,
        }  # fmt: skip

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Layer:
        """The inverse of to_json."""
        attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in d["attrs"].items()}
        return Layer(d["name"], d["op"], tuple(d["inputs"]), tuple(d["shape"]), attrs, dict(d["params"]), d["module"], d["target"], d["macs"])


@dataclass(frozen=True)
class Graph:
    """A network as Layers in topological order.

    ``layers`` begins with the ``input`` layers; ``outputs`` names the layers whose results the network returns. ``constants`` holds the few tensors
    that are neither parameters nor buffers (numpy arrays by name). A candidate of the search is an edit of such a value; the network is traced once.
    """

    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        return self.by_name[name]

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def consumers(self) -> dict[str, tuple[Layer, ...]]:
        """For each layer's name, the layers that read its result, in order."""
        users: dict[str, list[Layer]] = {layer.name: [] for layer in self.layers}
        for layer in self.layers:
            for name in dict.fromkeys(layer.inputs):
                users[name].append(layer)
        return {name: tuple(found) for name, found in users.items()}

    @property
    def inputs(self) -> tuple[Layer, ...]:
        """The input layers, in the order of the arguments."""
        return tuple(layer for layer in self.layers if layer.op == "input")

    @property
    def prunable(self) -> tuple[Layer, ...]:
        """Convolutions with groups = 1 and linear layers, each module once: the layers that a Scheme speaks of."""
        seen: set[str] = set()
        return tuple(x for x in self.layers if x.is_prunable and x.module and not (x.module in seen or seen.add(x.module)))  # type: ignore[func-returns-value]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole network."""
        return sum(layer.macs for layer in self.layers)

    def replace(self, name: str, **changes: Any) -> Graph:
        """A copy in which the layer ``name`` has other field values."""
        return replace(self, layers=tuple(replace(x, **changes) if x.name == name else x for x in self.layers))

    def to_json(self) -> dict[str, Any]:
        """Plain data for graph.json (constants by shape only)."""
        return {"layers": [x.to_json() for x in self.layers], "outputs": list(self.outputs), "macs": self.macs}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Graph:
        """The inverse of to_json, without constants: enough for reports and search spaces."""
        return Graph(tuple(Layer.from_json(x) for x in d["layers"]), tuple(d["outputs"]))
