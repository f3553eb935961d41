"""Graph -> Program, one Step for each layer: every operator in terms of the few that have kernels. Fusion (fuse.py) and shrinking (shrink.py) come after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stages.compiler.ir import Program, Step, Value
from stages.errors import UnsupportedOperator, UsageError
from stages.graph.layer import ACTIVATIONS, Graph, Layer
from stages.schemes.scheme import Scheme

_ARGUMENTS = {"leaky_relu": ("negative_slope",), "gelu": ("approximate",), "elu": ("alpha",), "softplus": ("beta", "threshold"), "hardtanh": ("min", "max")}


@dataclass(frozen=True)
class Ref:
    """What a layer's name stands for: a Value, and how the network sees it: "plain", "flat" (n, c * h * w), "grouped" (n, g, c / g, h, w) or "shuffled" (n, c / g, g, h, w)."""

    value: str
    form: str = "plain"
    groups: int = 0


def lower(graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme) -> Program:
    """The Program of ``graph`` with weights from ``tensors`` (state_dict names). Raises UnsupportedOperator for what no rule below can express."""
    lowering = _Lowering(graph, {**tensors, **graph.constants}, scheme)
    for layer in graph:
        rule = _RULES.get(layer.op, _unknown)
        rule(lowering, layer)
    return lowering.finish()


class _Lowering:
    def __init__(self, graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme):
        self.graph, self.tensors, self.scheme = graph, tensors, scheme
        self.steps: list[Step] = []
        self.values: dict[str, Value] = {}
        self.refs: dict[str, Ref] = {}
        self.inputs: list[tuple[str, tuple[int, ...]]] = []

    def refuse(self, layer: Layer, operator: str) -> None:
        raise UnsupportedOperator(
            f"npas can't compile the operator '{operator}' of layer '{layer.name}'.",
            "Add a rule to stages/compiler/lower.py, and a kernel to stages/compiler/kernels/ if none fits.",
        )

    def value(self, name: str, shape: tuple[int, ...], layer: Layer) -> str:
        """A new Value for ``shape`` (n, c, h, w) or (n, c)."""
        if len(shape) not in (2, 4):
            self.refuse(layer, f"{layer.op} with a result of {len(shape)} dimensions")
        self.values[name] = Value(name, (*shape, *(1,) * (4 - len(shape))))  # type: ignore[arg-type]
        return name

    def plain(self, layer: Layer, index: int = 0) -> Value:
        """The Value of an operand that must be seen as it lies."""
        ref = self.refs[layer.inputs[index]]
        if ref.form != "plain":
            self.refuse(layer, f"{layer.op} of a reshaped tensor")
        return self.values[ref.value]

    def tensor(self, layer: Layer, role: str) -> np.ndarray | None:
        name = layer.params.get(role)
        return None if name is None else np.asarray(self.tensors[name])

    def add(self, layer: Layer, step: Step, form: str = "plain") -> None:
        self.steps.append(step)
        self.refs[layer.name] = Ref(step.output, form)

    def finish(self) -> Program:
        outputs = []
        for index, name in enumerate(self.graph.outputs):
            ref = self.refs[name]
            if ref.form not in ("plain", "flat"):
                self.refuse(self.graph[name], "reshape at the network's output")
            outputs.append((ref.value, self.graph[name].shape))
            self.steps.append(Step(f"output{index}", "output", (ref.value,), f"output:{index}", {"index": index}))
        return drop_unread(Program(tuple(self.steps), self.values, tuple(self.inputs), tuple(outputs)))


def drop_unread(program: Program) -> Program:
    """The Program without steps whose results nobody reads."""
    needed: set[str] = set()
    kept = []
    for step in reversed(program.steps):
        if step.op in ("input", "output") or step.output in needed:
            kept.append(step)
            needed.update(step.inputs)
    written = {name for step in kept for name in (*step.inputs, step.output)}
    return Program(tuple(reversed(kept)), {k: v for k, v in program.values.items() if k in written}, program.inputs, program.outputs)


def _unknown(lo: _Lowering, layer: Layer) -> None:
    lo.refuse(layer, layer.target or layer.op)


def _input(lo: _Lowering, layer: Layer) -> None:
    lo.inputs.append((lo.value(layer.name, layer.shape, layer), layer.shape))
    lo.add(layer, Step(layer.name, "input", (f"input:{len(lo.inputs) - 1}",), layer.name, {"index": len(lo.inputs) - 1}))


def _constant(lo: _Lowering, layer: Layer) -> None:
    pass  # read where it is used


def _conv(lo: _Lowering, layer: Layer) -> None:
    a, weight, bias = layer.attrs, lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    assert weight is not None
    source = lo.plain(layer)
    weight = weight.astype(np.float32)
    depthwise = layer.is_depthwise and a["out_channels"] == a["in_channels"]
    if not depthwise and a["groups"] > 1:
        weight = _expand(weight, a["groups"])
    attrs = {"stride": a["stride"], "padding": a["padding"], "dilation": a["dilation"]}
    shift = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
    out = lo.value(layer.name, layer.shape, layer)
    op = "depthwise" if depthwise else "conv"
    lo.add(layer, Step(layer.name, op, (source.name,), out, attrs, weight, shift, module=layer.module, scheme=lo.scheme[layer.module], macs=layer.macs))


def _expand(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's weight (o, i / groups, kh, kw) with zeros for the channels of other groups: the gather kernel skips them."""
    filters, inner = weight.shape[:2]
    full = np.zeros((filters, inner * groups, *weight.shape[2:]), np.float32)
    each = filters // groups
    for g in range(groups):
        full[g * each : (g + 1) * each, g * inner : (g + 1) * inner] = weight[g * each : (g + 1) * each]
    return full


def _linear(lo: _Lowering, layer: Layer) -> None:
    """A matrix product is a convolution that spans its whole input: columns of a flattened (c, h, w) are its positions."""
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    assert weight is not None
    ref = lo.refs[layer.inputs[0]]
    source = lo.values[ref.value]
    if ref.form not in ("plain", "flat") or len(lo.graph[layer.inputs[0]].shape) != 2:
        lo.refuse(layer, "linear on more than two dimensions")
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    shift = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
    shaped = weight.astype(np.float32).reshape(len(weight), *source.shape[1:])
    out = lo.value(layer.name, layer.shape, layer)
    lo.add(layer, Step(layer.name, "conv", (source.name,), out, attrs, shaped, shift, module=layer.module, scheme=lo.scheme[layer.module], macs=layer.macs))


def _elementwise(
    lo: _Lowering, layer: Layer, source: Ref, item: tuple[object, ...], *operands: str, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> None:
    out = lo.value(layer.name, lo.values[source.value].shape, layer)
    attrs = {} if scale is None else {"scale": scale, "shift": shift}
    lo.add(layer, Step(layer.name, "elementwise", (source.value, *operands), out, attrs, epilogue=(item,)), source.form)


def _activation(lo: _Lowering, layer: Layer) -> None:
    arguments = tuple(layer.attrs[key] for key in _ARGUMENTS.get(layer.op, ()))
    source = lo.refs[layer.inputs[0]]
    if source.form not in ("plain", "flat"):
        lo.refuse(layer, f"{layer.op} of a reshaped tensor")
    _elementwise(lo, layer, source, (layer.op, *arguments))


def _batch_norm(lo: _Lowering, layer: Layer) -> None:
    mean, variance = lo.tensor(layer, "running_mean"), lo.tensor(layer, "running_var")
    if mean is None or variance is None:
        raise UsageError(f"Batch norm '{layer.name}' has no running statistics.", "Train with track_running_stats=True.")
    weight, bias = lo.tensor(layer, "weight"), lo.tensor(layer, "bias")
    gain = np.ones_like(mean, np.float64) if weight is None else weight.astype(np.float64)
    scale = gain / np.sqrt(variance.astype(np.float64) + layer.attrs["eps"])
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean.astype(np.float64) * scale
    source = Ref(lo.plain(layer).name)
    _elementwise(lo, layer, source, ("affine",), scale=scale, shift=shift)


_SCALAR: dict[str, Callable[[float], tuple[str, float]]] = {
    "add": lambda v: ("shift", v),
    "sub": lambda v: ("shift", -v),
    "mul": lambda v: ("scale", v),
    "div": lambda v: ("scale", 1.0 / v),
}
_REVERSED = {"add": "add", "mul": "mul", "sub": "rsub", "div": "rdiv"}


def _binary(lo: _Lowering, layer: Layer) -> None:
    if "value" in layer.attrs:
        _elementwise(lo, layer, lo.refs[layer.inputs[0]], _SCALAR[layer.op](layer.attrs["value"]))
        return
    constants = [i for i, name in enumerate(layer.inputs) if lo.graph[name].op == "constant"]
    if constants:
        _with_constant(lo, layer, constants[0])
    elif not _self_gate(lo, layer):
        _two_tensors(lo, layer)


def _with_constant(lo: _Lowering, layer: Layer, index: int) -> None:
    """A parameter or buffer as operand: one number, or one a channel."""
    values = lo.tensor(lo.graph[layer.inputs[index]], "value")
    assert values is not None
    source = lo.plain(layer, 1 - index)
    rank = len(layer.shape)
    shape = (1,) * (rank - values.ndim) + values.shape
    if (index == 0 and layer.op in ("sub", "div")) or shape not in ((1,) * rank, (1, source.shape[1], *(1,) * (rank - 2))):
        lo.refuse(layer, f"{layer.op} with a constant of shape {values.shape}")
    flat = np.broadcast_to(values.astype(np.float64).reshape(-1), (source.shape[1],))
    ones, zeros = np.ones(source.shape[1]), np.zeros(source.shape[1])
    scale, shift = {"add": (ones, flat), "sub": (ones, -flat), "mul": (flat, zeros), "div": (ones / flat if layer.op == "div" else ones, zeros)}[layer.op]
    _elementwise(lo, layer, Ref(source.name), ("affine",), scale=scale, shift=shift)


def _self_gate(lo: _Lowering, layer: Layer) -> bool:
    """x * hardsigmoid(x) is hard-swish, x * sigmoid(x) is swish."""
    if layer.op != "mul" or len(layer.inputs) != 2:
        return False
    for x, gate in (layer.inputs, layer.inputs[::-1]):
        made = lo.graph[gate]
        if made.op in ("hardsigmoid", "sigmoid") and made.inputs == (x,):
            _elementwise(lo, layer, lo.refs[x], ("hardswish" if made.op == "hardsigmoid" else "silu",))
            return True
    return False


def _two_tensors(lo: _Lowering, layer: Layer) -> None:
    left, right = lo.refs[layer.inputs[0]], lo.refs[layer.inputs[1]]
    shapes = [lo.graph[name].shape for name in layer.inputs]
    a, b = lo.values[left.value].shape, lo.values[right.value].shape
    if left.form != right.form or left.form not in ("plain", "flat") or len(shapes[0]) != len(shapes[1]):
        lo.refuse(layer, f"{layer.op} of shapes {shapes[0]} and {shapes[1]}")
    if a == b or (b[:2] == a[:2] and b[2:] == (1, 1)):
        _elementwise(lo, layer, left, (layer.op, 0), right.value)
    elif a[:2] == b[:2] and a[2:] == (1, 1):
        _elementwise(lo, layer, right, (_REVERSED[layer.op], 0), left.value)
    else:
        lo.refuse(layer, f"{layer.op} of shapes {shapes[0]} and {shapes[1]}")


def _pool(lo: _Lowering, layer: Layer, kind: str, rows: tuple[tuple[int, int, int], ...], cols: tuple[tuple[int, int, int], ...]) -> None:
    source = lo.plain(layer)
    out = lo.value(layer.name, layer.shape, layer)
    lo.add(layer, Step(layer.name, "pool", (source.name,), out, {"kind": kind, "rows": rows, "cols": cols}))


def _windows(layer: Layer, axis: int, size: int) -> tuple[tuple[int, int, int], ...]:
    """(first, behind the last, divisor) for each output of a max or average pooling along one axis, clipped to the image, as PyTorch counts them."""
    kernel, stride, padding = (layer.attrs[key][axis] for key in ("kernel", "stride", "padding"))
    found = []
    for index in range(layer.shape[2 + axis]):
        start = index * stride - padding
        stop = min(start + kernel, size + padding)
        whole = stop - start
        start, stop = max(start, 0), min(stop, size)
        found.append((start, stop, whole if layer.attrs.get("count_include_pad") else stop - start))
    return tuple(found)


def _strided_pool(lo: _Lowering, layer: Layer) -> None:
    shape = lo.plain(layer).shape
    _pool(lo, layer, "max" if layer.op == "max_pool2d" else "avg", _windows(layer, 0, shape[2]), _windows(layer, 1, shape[3]))


def _adaptive(size: int, outputs: int) -> tuple[tuple[int, int, int], ...]:
    bounds = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    return tuple((start, stop, stop - start) for start, stop in bounds)


def _adaptive_pool(lo: _Lowering, layer: Layer) -> None:
    source = lo.plain(layer)
    if source.shape[2:] == layer.shape[2:]:
        lo.refs[layer.name] = Ref(source.name)
    else:
        _pool(lo, layer, "avg", _adaptive(source.shape[2], layer.shape[2]), _adaptive(source.shape[3], layer.shape[3]))


def _mean(lo: _Lowering, layer: Layer) -> None:
    source = lo.plain(layer)
    if tuple(layer.attrs["dims"]) != (2, 3) or len(lo.graph[layer.inputs[0]].shape) != 4:
        lo.refuse(layer, f"mean over dimensions {tuple(layer.attrs['dims'])}")
    _pool(lo, layer, "avg", _adaptive(source.shape[2], 1), _adaptive(source.shape[3], 1))


def _reshape(lo: _Lowering, layer: Layer) -> None:
    """Views that move no float, seen pixel-major: (n, c, 1, 1) <-> (n, c), flattening, and the first and last part of a channel shuffle."""
    ref, before, after = lo.refs[layer.inputs[0]], lo.graph[layer.inputs[0]].shape, layer.shape
    n, c, h, w = lo.values[ref.value].shape
    matrix = (h, w) == (1, 1)
    if after == before or (ref.form == "plain" and matrix and after in ((n, c), (n, c, 1, 1))):
        lo.refs[layer.name] = ref
    elif ref.form in ("plain", "flat") and after in ((n, c * h * w), (n, c, h, w)):
        lo.refs[layer.name] = Ref(ref.value, "flat" if len(after) == 2 else "plain")
    elif ref.form == "plain" and len(after) == 5 and after[0] == n and after[1] * after[2] == c and after[3:] == (h, w):
        lo.refs[layer.name] = Ref(ref.value, "grouped", after[1])
    elif ref.form == "shuffled" and after == (n, c, h, w):
        _shuffle(lo, layer, ref)
    else:
        lo.refuse(layer, f"{layer.op} from {before} to {after}")


def _permute(lo: _Lowering, layer: Layer) -> None:
    ref = lo.refs[layer.inputs[0]]
    if ref.form != "grouped" or tuple(layer.attrs["dims"]) != (0, 2, 1, 3, 4):
        lo.refuse(layer, f"permute {tuple(layer.attrs['dims'])}")
    lo.refs[layer.name] = Ref(ref.value, "shuffled", ref.groups)


def _shuffle(lo: _Lowering, layer: Layer, ref: Ref) -> None:
    """Channel g of each group comes together: output channel i * groups + g is input channel g * (c / groups) + i."""
    _, c, h, w = lo.values[ref.value].shape
    out, each = lo.value(layer.name, layer.shape, layer), c // ref.groups
    for g in range(ref.groups):
        _copy(lo, layer, ref.value, out, (each, h, w), ((g * each, 1), (0, 1), (0, 1)), ((g, ref.groups), (0, 1), (0, 1)), first=g == 0)


def _copy(
    lo: _Lowering, layer: Layer, source: str, out: str, counts: tuple[int, ...], read: tuple, write: tuple, first: bool = True, fill: float | None = None
) -> None:
    attrs = {"counts": counts, "source": read, "target": write, "first": first, "fill": fill}
    lo.add(layer, Step(layer.name, "copy", (source,), out, attrs))


_WHOLE = ((0, 1), (0, 1), (0, 1))


def _concat(lo: _Lowering, layer: Layer) -> None:
    axis = layer.attrs["dim"] - 1
    parts = [lo.plain(layer, i) for i in range(len(layer.inputs))]
    if axis < 0:
        lo.refuse(layer, "concat along the batch")
    out, position = lo.value(layer.name, layer.shape, layer), 0
    for index, part in enumerate(parts):
        write = tuple((position, 1) if k == axis else (0, 1) for k in range(3))
        _copy(lo, layer, part.name, out, part.shape[1:], _WHOLE, write, first=index == 0)
        position += part.shape[1 + axis]


def _slice(lo: _Lowering, layer: Layer) -> None:
    axis, source = layer.attrs["dim"] - 1, lo.plain(layer)
    if axis < 0:
        lo.refuse(layer, "slice along the batch")
    out = lo.value(layer.name, layer.shape, layer)
    read = tuple((layer.attrs["start"], layer.attrs["step"]) if k == axis else (0, 1) for k in range(3))
    _copy(lo, layer, source.name, out, lo.values[out].shape[1:], read, _WHOLE)


def _pad(lo: _Lowering, layer: Layer) -> None:
    pads, source = layer.attrs["pad"], lo.plain(layer)
    before = [*pads[::2], 0, 0, 0][:3]  # F.pad: last dimension first
    if min(pads) < 0 or len(pads) > 6:
        lo.refuse(layer, f"pad by {pads}")
    out = lo.value(layer.name, layer.shape, layer)
    write = ((before[2], 1), (before[1], 1), (before[0], 1))
    _copy(lo, layer, source.name, out, source.shape[1:], _WHOLE, write, fill=layer.attrs["value"])


_RULES: dict[str, Callable[[_Lowering, Layer], None]] = {
    "input": _input,
    "constant": _constant,
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(("add", "sub", "mul", "div"), _binary),
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _strided_pool),
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean,
    **dict.fromkeys(("flatten", "reshape"), _reshape),
    "permute": _permute,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
}
