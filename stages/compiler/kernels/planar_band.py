"""A convolution and the depthwise one behind it in one kernel, by bands of rows: a group of expanded planes is consumed while it is in the second-level cache, and never written to memory.

Inverted residuals expand to six times the channels by a 1x1 convolution, and at the first resolutions the expanded activation exceeds the cache; so does the result of a network's first layer. Per band of rows and group of filters, the expanded rows (with the
halo that the window needs; bands are high, so little is computed twice) go to scratch memory, in the geometry of planes, and the depthwise convolution reads them there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from stages.compiler.ir import BEYOND, Epilogue, Layout, Step, round_up
from stages.compiler.kernels import planar, planar_conv, planar_conv_cost, planar_depthwise
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.packing import pack
from stages.compiler.kernels.units import split, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

SCRATCH = 128 * 1024  # bytes of a group's expanded band: it stays in the second-level cache beside the band of the input
ALIGNED = planar.ALIGNED


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``source``: a plane of the input, which has the expanded planes' geometry. ``bands`` bands of ``height`` rows of results."""

    source: Layout
    segments: tuple[tuple[int, int, int], ...]  # (first filter, groups, filters per group)
    vectors: int
    epilogue: Epilogue  # of the convolution
    padding: tuple[int, int]
    bands: int
    height: int
    bias: int  # float of operand b where the biases of the convolution begin
    mask: int  # float of operand b that belongs to the first pixel
    depthwise: planar_depthwise.Spec

    @property
    def rows(self) -> int:
        """Expanded rows of a band."""
        return (self.height - 1) * self.depthwise.stride[0] + self.depthwise.kernel[0]

    @property
    def floats(self) -> int:
        """Floats of an expanded row slot's walk: all rows, the frame columns of the window, and what aligning the beginning costs."""
        return self.rows * self.source.cols + self.padding[1] + ALIGNED - 1

    def plane(self, lanes: int) -> int:
        """Floats from one expanded plane in scratch memory to the next."""
        return round_up(round_up(self.floats, lanes), ALIGNED)


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "band" step (bands.py), None for any other."""
    step, source, out = placed.step, placed.inputs[0], placed.output
    if step.op != "band":
        return None
    expand: Step = step.attrs["expand"]
    assert step.weight is not None and step.bias is not None and expand.weight is not None and expand.bias is not None
    hidden = replace(source, shape=(out.shape[0], len(expand.weight), *source.shape[2:]))
    flat = expand.weight.reshape(len(expand.weight), -1)
    _, groups, vectors = planar_conv_cost.choose(expand, hidden, target)
    data, kept = pack(flat, expand.bias, groups, planar_conv.offsets(Placed(expand, (source,), hidden)))
    n, c, h, w = out.shape
    kh, kw = step.weight.shape[2:]
    own = step.weight.reshape(c, -1).ravel()
    every = sum(g.count for g in groups)
    ptr = data["ptr"].copy()
    ptr[2 : 3 * every : 3] += len(own)  # where each group's weights begin
    bias = round_up(c, ALIGNED)
    biases = np.zeros(bias + round_up(len(data["b"]), ALIGNED), np.float32)
    biases[:c], biases[bias : bias + len(data["b"])] = step.bias, data["b"]
    a = step.attrs
    before = round_up(a["padding"][0] * source.cols + a["padding"][1], ALIGNED)
    rows = min(h, planar_depthwise.rows_at_once((kh, kw), a["stride"], target))
    depthwise = planar_depthwise.Spec((0, 0, 0, source.cols), out, planar.operands(placed), (kh, kw), a["stride"], rows, step.epilogue)
    segments = tuple((g.start, g.count, g.lanes * g.vectors) for g in groups)
    height = _height(h, max(s[2] for s in segments), source.cols, a["stride"][0], kh, out.parts)
    spec = Spec(source, segments, vectors, expand.epilogue, a["padding"], h // height, height, bias, len(biases) + before, depthwise)
    data = {"w": np.concatenate([own, data["w"]]), "b": np.concatenate([biases, _inside(spec, before, target.lanes)]), "ptr": ptr, "idx": data["idx"]}
    macs = kept * n * source.shape[2] * source.shape[3] + len(own) * n * h * w
    reason = f"with {expand.name} ({expand.scheme.label}, {kept} of {flat.size} weights), by {spec.bands} bands of {height} rows: the expanded activation stays in the cache"
    label = f"{vectors}x{target.lanes} pixels x {segments[0][2]} channels, {rows} rows"
    scratch = 4 * (max(s[2] for s in segments) * spec.plane(target.lanes) + BEYOND)
    return Kernel("planar_band", spec, step, data, label, macs, reason, units(_dims(spec)), scratch)


def reach(step: Step, expand: Step, source: Layout) -> int:
    """Bytes before ``source`` that the first band of the depthwise ``step`` reads: rows of ``expand``'s result above the image are computed like all others, and then replaced by zeros."""
    back = source.origin - int(planar_conv.offsets(Placed(expand, (source,), source)).min())
    rows, cols = step.attrs["padding"]
    return max(0, rows * source.cols + cols + ALIGNED - 1 + back - source.origin) * 4


def _height(rows: int, filters: int, cols: int, stride: int, kernel: int, parts: int) -> int:
    """Rows of results of a band: the most that SCRATCH allows, of the divisors of the rows of each of ``parts`` parts."""
    rows //= parts
    fitting = [r for r in range(1, rows + 1) if rows % r == 0 and filters * ((r - 1) * stride + kernel) * cols * 4 <= SCRATCH]
    return max(fitting, default=1)


def _inside(spec: Spec, before: int, lanes: int) -> np.ndarray:
    """For each float of a walk over a plane from ``before`` floats before its first pixel on: 1 in the image, 0 in the frame and beyond."""
    _, _, h, w = spec.source.shape
    place = np.arange(-before, (h + spec.padding[0]) * spec.source.cols + spec.padding[1] + ALIGNED + 2 * lanes)
    return ((place >= 0) & (place < h * spec.source.cols) & (place % spec.source.cols < w)).astype(np.float32)


def _dims(spec: Spec) -> list[tuple[int, int, int]]:
    return [(spec.depthwise.out.shape[0], spec.bands, count) for _, count, _ in spec.segments]


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    def body(o: Any) -> None:
        before = 0
        for dims, (start, count, filters) in zip(_dims(spec), spec.segments, strict=True):
            tir.nest(o, units(_dims(spec)), dims, _band(o, spec, start, before, filters, target))
            before += count

    return tir.function(name, body, multiplies=target)


def _band(o: Any, spec: Spec, start: int, before: int, filters: int, target: Target) -> Any:
    """One band of one group of ``filters``: expand into scratch, then the depthwise convolution from there."""
    from stages.compiler.kernels import tir

    T, deep, cols = tir.T, spec.depthwise, spec.source.cols
    scratch = SimpleNamespace(**{**vars(o), "x": o.s})
    plane = spec.plane(target.lanes)
    shift = round_up(spec.padding[0] * cols + spec.padding[1], ALIGNED)

    def visit(n: Any, band: Any, g: Any) -> None:
        channel = T.Bind(g * filters + start)
        first = T.Bind(band * (spec.height * deep.stride[0]) * cols - (spec.padding[0] * cols + spec.padding[1]))  # the window's first float, from the first pixel
        behind = T.Bind(tir.tirx.truncmod(first + shift, ALIGNED))
        begin = T.Bind(first - behind)
        for size, vector0, tiles in split(-(-spec.floats // target.lanes), spec.vectors):
            with T.serial(0, tiles) as tile:
                _expand(o, spec, (size, filters), n, channel, g + before, begin, T.Bind((tile * size + vector0) * target.lanes), target)
        with T.serial(0, filters) as f:
            c = T.Bind(channel + f)
            planar.zero_frame(o, T.Bind(n * deep.out.image + c * deep.out.channel), deep.out, band, spec.bands, target.narrow)
            window = T.Bind(f * plane + behind - band * (spec.height * deep.stride[0] * cols))
            planar_depthwise.sweep(scratch, deep, n, c, window, spec.height, T.Bind(band * spec.height), target)

    return visit


def _expand(o: Any, spec: Spec, shape: tuple[int, int], n: Any, channel: Any, group: Any, begin: Any, pixel: Any, target: Target) -> None:
    """One tile of expanded pixels times one group of filters, to float ``pixel`` of the scratch planes; it belongs ``begin + pixel`` floats after the first pixel."""
    from stages.compiler.kernels import epilogue, tir

    T, lanes, (vectors, filters) = tir.T, target.lanes, shape
    acc = T.alloc_buffer((vectors * filters * lanes,), "float32", scope="local")

    def slot(f: int, v: int) -> Any:
        return tir.at((f * vectors + v) * lanes, lanes)

    for f in range(filters):
        bias = T.Bind(T.broadcast(o.b[channel + (spec.bias + f)], lanes))
        for v in range(vectors):
            T.buffer_store(acc, bias, [slot(f, v)])
    corner = T.Bind(n * spec.source.image + begin + pixel)
    k0, count, w0 = (T.Bind(o.ptr[group * 3 + i]) for i in range(3))
    with T.serial(0, count) as k:
        source = T.Bind(o.idx[k0 + k] + corner)
        pixels = [T.Bind(o.x[tir.at(source + v * lanes, lanes)]) for v in range(vectors)]
        for f in range(filters):
            weight = T.Bind(T.broadcast(o.w[w0 + k * filters + f], lanes))
            for v in range(vectors):
                T.buffer_store(acc, tir.multiply_add(acc[slot(f, v)], pixels[v], weight, lanes, target, min(vectors, filters)), [slot(f, v)])
    zero = tir.splat(0, lanes)
    for v in range(vectors):
        mask = T.Bind(o.b[tir.at(begin + pixel + (spec.mask + v * lanes), lanes)])
        for f in range(filters):
            result = epilogue.apply(spec.epilogue, acc[slot(f, v)], lanes, _nothing, _nothing)
            tir.store(o.s, pixel + (f * spec.plane(lanes) + v * lanes), tir.tirx.Select(mask > zero, result, zero), lanes)


def _nothing(*_: int) -> Any:
    raise AssertionError("bands.py fuses no convolution with further operands")
