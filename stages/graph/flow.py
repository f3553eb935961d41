"""Where every channel goes: which channels of which layers are one and the same. Imports graph values only, no torch.

Each filter of a convolution and each row of a linear layer makes a new channel; batch norms, activations, pooling and depthwise convolutions pass it on; concatenations, slices, shuffles,
reshapes and permutations carry it to another place; a sum makes the channels of both sides one. So channels are numbered one by one, whatever the layers' own numbering, and a
tensor is an array of such numbers, broadcast along the axes on which they don't depend: (1, C, 1, 1) behind a convolution, (1, 2, C / 2, 1, 1) in the middle of a channel shuffle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from stages.graph.layer import ACTIVATIONS, Graph, Layer

_KEEPS_ZERO = frozenset({"relu", "relu6", "hardswish", "leaky_relu", "silu", "gelu", "tanh", "mish", "elu"})  # f(0) = 0
_POOLING = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
_PINNED = 0  # the channel that stands for all those that must stay where they are


@dataclass(frozen=True)
class _Tensor:
    """``ids``: the channel at each place; ``zero``: whether it is exactly zero there once its filter is. Both have one axis for each of the tensor's, of full size or 1."""

    ids: np.ndarray
    zero: np.ndarray

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> _Tensor:
        return _Tensor(change(self.ids), change(self.zero))


@dataclass(frozen=True)
class Flow:
    """``of``: for each layer the channels along dimension 1 of its result, as numbers; ``reads``: the channels of a convolution's or a linear layer's input, one for each column of its weight.

    ``pinned[c]``: channel c must stay at its place (the network's input and outputs, operators that are not known to treat channels alike). ``lasting[c]``: it can't be removed, either because
    it is pinned or because its removal would show: something adds a constant to it before it is read, or no mask can make it zero.
    """

    of: dict[str, np.ndarray]
    reads: dict[str, np.ndarray]
    pinned: np.ndarray
    lasting: np.ndarray


def flow(graph: Graph) -> Flow:
    """Follow every channel through ``graph``."""
    tracer = _Tracer(graph)
    for layer in graph:
        tracer.visit(layer)
    return tracer.result()


def group_slices(layer: Layer) -> Iterator[tuple[slice, slice]]:
    """(filters, input channels) of each group of a convolution."""
    groups, filters, channels = (layer.attrs[key] for key in ("groups", "out_channels", "in_channels"))
    for g in range(groups):
        yield slice(g * filters // groups, (g + 1) * filters // groups), slice(g * channels // groups, (g + 1) * channels // groups)


class _Tracer:
    def __init__(self, graph: Graph):
        self.graph, self.count = graph, 1
        self.tensors: dict[str, _Tensor] = {}
        self.reads: dict[str, np.ndarray] = {}
        self.joins: list[tuple[np.ndarray, np.ndarray]] = []
        self.lasting: list[np.ndarray] = [np.array([_PINNED])]
        self.first: dict[str, Layer] = {}

    def visit(self, layer: Layer) -> None:
        rule = _rule(layer, self.graph)
        if rule is None:
            for name in layer.inputs:
                self.pin(self.tensors[name].ids)
        made = rule(self, layer) if rule else None
        self.tensors[layer.name] = made or _pinned(len(layer.shape))
        if layer.name in self.graph.outputs:
            self.pin(self.tensors[layer.name].ids)
        if layer.params and layer.op != "constant":
            self.share(layer)

    def pin(self, ids: np.ndarray) -> None:
        self.join(ids, np.zeros_like(ids))

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        self.joins.append((a.ravel(), b.ravel()))

    def row(self, name: str) -> _Tensor:
        """A result's channels along dimension 1, in an array of one axis; pinned where they lie in another way."""
        tensor, shape = self.tensors[name], self.graph[name].shape
        if len(shape) < 2 or tensor.ids.size != tensor.ids.shape[1]:
            self.pin(tensor.ids)
            tensor = _pinned(max(len(shape), 2))
        size = shape[1] if len(shape) > 1 else 1
        return tensor.map(lambda a: np.broadcast_to(a.ravel(), (size,)))

    def fresh(self, layer: Layer) -> _Tensor:
        ids = np.arange(self.count, self.count + layer.shape[1])
        self.count += layer.shape[1]
        if not layer.module:
            self.pin(ids)  # no mask and no permutation can name its weights
        if layer.op == "conv2d" and layer.attrs["groups"] > 1:
            self.lasting.append(ids)  # grouped convolutions stay dense
        return _Tensor(ids, np.ones(len(ids), bool)).map(lambda a: a.reshape(1, -1, *[1] * (len(layer.shape) - 2)))

    def share(self, layer: Layer) -> None:
        """A module that is called twice has the same channels in both results, and in both inputs of its weights."""
        other = self.first.setdefault(layer.params.get("weight", layer.name), layer)
        if other is not layer:
            for a, b in ((layer.name, other.name), (layer.inputs[0], other.inputs[0])):
                self.join(self.row(a).ids, self.row(b).ids)

    def weighted(self, layer: Layer) -> _Tensor:
        read = self.row(layer.inputs[0])
        self.reads[layer.name] = read.ids
        self.lasting.append(read.ids[~read.zero])  # a removed channel would still add a constant here
        return self.fresh(layer)

    def passed(self, layer: Layer) -> _Tensor:
        """The (first) input's channels, in their places."""
        tensor = self.tensors[layer.inputs[0]]
        if layer.op not in ACTIVATIONS and "value" not in layer.attrs:
            self.row(layer.inputs[0])  # pins channels that lie along another axis than these layers expect
            if tensor.ids.ndim < 2 or tensor.ids.size != tensor.ids.shape[1]:
                return _pinned(len(layer.shape))  # pooling changes the size of that axis
        if layer.op == "batch_norm" and not (layer.module and {"weight", "bias"} <= set(layer.params)):
            self.lasting.append(tensor.ids.ravel())
        return _Tensor(tensor.ids, np.broadcast_to(_zero(layer, tensor.zero), tensor.ids.shape))

    def binary(self, layer: Layer) -> _Tensor:
        operands = [self.tensors[n] for n in layer.inputs]
        shapes = [self.graph[n].shape for n in layer.inputs]
        varied = [k for k in range(len(layer.shape)) if any(t.ids.ndim == len(layer.shape) and t.ids.shape[k] > 1 for t in operands)]
        fits = [len(s) == len(layer.shape) > 1 and all(s[k] == layer.shape[k] for k in {1, *varied}) for s in shapes]
        for tensor, fit in zip(operands, fits, strict=True):
            if not fit:
                self.pin(tensor.ids)
        same = [t for t, fit in zip(operands, fits, strict=True) if fit]
        if not same:
            return _pinned(len(layer.shape))
        for tensor in same[1:]:
            self.join(same[0].ids, tensor.ids)
        combine = np.logical_or if layer.op == "mul" else np.logical_and
        zero = [t.zero for t in same] + [np.array(False)] * (len(operands) - len(same))
        ids = np.broadcast_arrays(*(t.ids for t in same))[0]
        return _Tensor(ids, np.broadcast_to(combine.reduce(np.broadcast_arrays(*zero)) if len(zero) > 1 else zero[0], ids.shape))

    def mean(self, layer: Layer) -> _Tensor:
        dims, tensor = tuple(layer.attrs["dims"]), self.tensors[layer.inputs[0]]
        if any(tensor.ids.shape[d] > 1 for d in dims):
            self.pin(tensor.ids)
            return _pinned(len(layer.shape))
        return tensor if layer.attrs["keepdim"] else tensor.map(lambda a: a.squeeze(dims))

    def reshape(self, layer: Layer) -> _Tensor:
        source = self.graph[layer.inputs[0]].shape
        return self.tensors[layer.inputs[0]].map(lambda a: _reshaped(a, source, layer.shape))

    def permute(self, layer: Layer) -> _Tensor:
        return self.tensors[layer.inputs[0]].map(lambda a: a.transpose(layer.attrs["dims"]))

    def concat(self, layer: Layer) -> _Tensor:
        dim, parts = layer.attrs["dim"], [(self.tensors[n], self.graph[n].shape) for n in layer.inputs]
        wide = [max(t.ids.shape[k] for t, _ in parts) for k in range(len(layer.shape))]
        sizes = [(*wide[:dim], shape[dim], *wide[dim + 1 :]) for _, shape in parts]
        ids = np.concatenate([np.broadcast_to(t.ids, size) for (t, _), size in zip(parts, sizes, strict=True)], dim)
        return _Tensor(ids, np.concatenate([np.broadcast_to(t.zero, size) for (t, _), size in zip(parts, sizes, strict=True)], dim))

    def slice(self, layer: Layer) -> _Tensor:
        dim, *span = (layer.attrs[key] for key in ("dim", "start", "stop", "step"))
        part = (*[slice(None)] * dim, slice(*span))
        return self.tensors[layer.inputs[0]].map(lambda a: a[part] if a.shape[dim] > 1 else a)

    def shuffle(self, layer: Layer) -> _Tensor:
        groups = layer.attrs["groups"]
        return self.row(layer.inputs[0]).map(lambda a: a.reshape(groups, -1).T.reshape(1, -1, *[1] * (len(layer.shape) - 2)))

    def pad(self, layer: Layer) -> _Tensor:
        """Rows and columns of zeros change no channel; whole channels of zeros are channels that nobody makes."""
        tensor, pads = self.tensors[layer.inputs[0]], layer.attrs["pad"]
        pairs = [(0, 0)] * (len(layer.shape) - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))[::-1]
        if min(pads) < 0 or any(p != (0, 0) and k != 1 and tensor.ids.shape[k] > 1 for k, p in enumerate(pairs)) or (any(pairs[1]) and tensor.ids.shape[1] == 1):
            self.pin(tensor.ids)
            return _pinned(len(layer.shape))
        along = [pair if k == 1 else (0, 0) for k, pair in enumerate(pairs)]
        ids = np.pad(tensor.ids, along, constant_values=-1)
        new = np.flatnonzero(ids.ravel() == -1)
        ids.ravel()[new] = np.arange(self.count, self.count + len(new))
        self.count += len(new)
        return _Tensor(ids, np.pad(tensor.zero, along, constant_values=True) & (layer.attrs["value"] == 0))

    def result(self) -> Flow:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows, columns = (np.concatenate([pair[k] for pair in self.joins] or [np.zeros(0, int)]) for k in (0, 1))
        number = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (self.count, self.count)), directed=False)[1]
        pinned, lasting = np.zeros(number.max() + 1, bool), np.zeros(number.max() + 1, bool)
        pinned[number[_PINNED]] = lasting[number[_PINNED]] = True
        lasting[number[np.concatenate(self.lasting)]] = True
        of = {}
        for name, tensor in self.tensors.items():
            ids, shape = number[tensor.ids], self.graph[name].shape
            if len(shape) > 1:
                own = ids.size == ids.shape[1]
                of[name] = np.broadcast_to(ids.ravel() if own else number[_PINNED], (shape[1],))
        return Flow(of, {name: number[ids] for name, ids in self.reads.items()}, pinned, lasting)


def _pinned(rank: int) -> _Tensor:
    return _Tensor(np.full([1] * rank, _PINNED), np.zeros([1] * rank, bool))


def _zero(layer: Layer, zero: np.ndarray) -> np.ndarray | bool:
    """Whether a removed channel is exactly zero behind a layer that passes channels on."""
    if layer.op in ("batch_norm", "conv2d"):
        return True  # masked with its channels: 0 * x + 0
    if layer.op in ACTIVATIONS:
        clips = layer.op == "hardtanh" and layer.attrs.get("min", -1) <= 0 <= layer.attrs.get("max", 1)
        return zero if layer.op in _KEEPS_ZERO or clips else False
    if layer.op in ("add", "sub"):
        return zero if layer.attrs["value"] == 0 else False
    return zero


def _reshaped(array: np.ndarray, source: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """``array``, broadcast along ``source``, in the shape ``target``: axes on which it doesn't depend stay of size 1 wherever they aren't merged with others."""
    made: list[int] = []
    spread: list[int] = []
    i = j = 0
    while i < len(source) or j < len(target):
        first, begin = i, j
        i, j = min(i + 1, len(source)), min(j + 1, len(target))
        while prod(source[first:i]) != prod(target[begin:j]):
            if i < len(source) and (prod(source[first:i]) < prod(target[begin:j]) or j == len(target)):
                i += 1
            else:
                j += 1
        constant = all(size == 1 for size in array.shape[first:i])
        spread += [1] * (i - first) if constant else source[first:i]
        made += [1] * (j - begin) if constant else target[begin:j]
    return np.broadcast_to(array, spread).reshape(made)


_RULES: dict[str, Callable[[_Tracer, Layer], _Tensor]] = {
    **dict.fromkeys(("batch_norm", *ACTIVATIONS, *_POOLING, "upsample_nearest2d"), _Tracer.passed),
    **dict.fromkeys(("flatten", "reshape"), _Tracer.reshape),
    "permute": _Tracer.permute,
    "concat": _Tracer.concat,
    "slice": _Tracer.slice,
    "channel_shuffle": _Tracer.shuffle,
    "pad": _Tracer.pad,
    "mean": _Tracer.mean,
    "conv2d": _Tracer.weighted,
    "linear": _Tracer.weighted,
}


def _rule(layer: Layer, graph: Graph) -> Callable[[_Tracer, Layer], _Tensor] | None:
    """How the channels behave in ``layer``; None for an operator that isn't known to treat them alike."""
    if layer.is_depthwise and layer.attrs["out_channels"] == layer.attrs["in_channels"]:
        return _Tracer.passed
    if layer.op in ("add", "sub", "mul", "div") and "value" in layer.attrs:
        return _Tracer.passed
    if layer.op in ("add", "sub", "mul") and len(layer.inputs) == 2:
        return _Tracer.binary
    vectors = layer.op == "linear" and len(layer.shape) != 2  # sequences: rows of a matrix along another axis
    return None if vectors or any(len(graph[name].shape) < 2 for name in layer.inputs) else _RULES.get(layer.op)
