"""Space to depth: every second row and column of an image as a channel of its own, so that a convolution with stride 2 becomes a flat walk over planes (planar_conv.py) without picking pixels apart.

Planes (n, c, h, w) become planes (n, 4c, ceil(h / 2), ceil(w / 2)); channel 4c + 2i + j holds the pixels (2y + i, 2x + j) of channel c, zeros where the image has none. One pass over the input, which may
be the caller's memory, replaces two loads and a shuffle per kept position of every convolution that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Layout, Shape, View
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme

CYCLES = 0.5  # per float, on Zen 4
BAND = 8  # pairs of rows that are one unit of work


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``source``: first float, and floats from image to image, channel to channel and row to row; ``size``: rows and columns that come in; ``foreign``: from the caller's memory."""

    source: View
    size: tuple[int, int]
    out: Layout
    foreign: bool

    @property
    def band(self) -> int:
        """Pairs of rows that are one unit of work."""
        pairs = self.size[0] // 2
        return BAND if self.out.parts == 1 else max(1, -(-pairs // self.out.parts))


def shape(source: Shape) -> Shape:
    """The shape of the result for images of shape ``source``."""
    n, c, h, w = source
    return (n, 4 * c, -(-h // 2), -(-w // 2))


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "space_to_depth" step, and of an "input" step that is one (``attrs["folded"]``); None for any other."""
    step, out = placed.step, placed.output
    foreign = step.op == "input" and bool(step.attrs.get("folded"))
    if step.op != "space_to_depth" and not foreign:
        return None
    if foreign:
        h, w = step.attrs["folded"]
        view = (0, out.shape[1] // 4 * h * w, h * w, w)
    else:
        x = placed.inputs[0]
        (h, w), view = x.shape[2:], (x.origin, x.image, x.channel, x.row)
    spec = Spec(view, (h, w), out, foreign)
    return Kernel("space_to_depth", spec, step, {}, "", 0, f"{'NCHW' if foreign else 'planes'} to planes of every second pixel", units([_dims(spec)]))


def _dims(spec: Spec) -> tuple[int, int, int]:
    """Images, channels, bands of pairs of rows: an image has few channels, and threads want shares that are alike. Bands before channels where they are the parts of planes."""
    n, c, bands = spec.out.shape[0], spec.out.shape[1] // 4, max(1, -(-(spec.size[0] // 2) // spec.band))
    return (n, bands, c) if spec.out.parts > 1 else (n, c, bands)


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T, out = tir.T, spec.out

    def band(o: Any, n: Any, c: Any, number: Any) -> None:
        first = T.Bind(n * out.image + 4 * c * out.channel)
        read = T.Bind(spec.source[0] + n * spec.source[1] + c * spec.source[2])
        pairs, odd = divmod(spec.size[0], 2)
        with T.If(number == 0), T.Then():
            with T.serial(0, 4) as part:
                planar.zero_outside(o, T.Bind(first + part * out.channel), out, planar.span(out), target.narrow)
            if odd:
                _row(o, spec, T.Bind(read + 2 * pairs * spec.source[3]), T.Bind(first + _begin(spec, 0) + pairs * out.cols), target)
                for column in (0, 1):
                    tir.fill(o.y, first + (_begin(spec, 1) + column * out.channel + pairs * out.cols), out.shape[3], 0.0, target.narrow)
        begin = T.Bind(number * spec.band)
        with T.serial(0, 4) as part:
            planar.zero_columns(o, T.Bind(first + part * out.channel), out, target.narrow, begin, begin + spec.band)
        with T.serial(begin, tir.tirx.min(begin + spec.band, pairs)) as y:  # both rows of a pair: the processor fetches ahead along what is read in order
            for parity in (0, 1):
                _row(o, spec, T.Bind(read + (2 * y + parity) * spec.source[3]), T.Bind(first + _begin(spec, parity) + y * out.cols), target)

    def body(o: Any) -> None:
        tir.nest(o, units([_dims(spec)]), _dims(spec), lambda n, a, b: band(o, n, b, a) if spec.out.parts > 1 else band(o, n, a, b))

    return tir.function(name, body, unaligned=("x",) if spec.foreign else ())


def _begin(spec: Spec, parity: int) -> int:
    """The first pixel of the plane of even or odd rows and even columns."""
    return 2 * parity * spec.out.channel + spec.out.origin


def _row(o: Any, spec: Spec, read: Any, write: Any, target: Target) -> None:
    """One row from float ``read`` to two of half its length, at ``write`` and a plane behind. Nothing beyond the row is read: it may be the caller's last."""
    from stages.compiler.kernels import tir
    from stages.compiler.kernels.planar_rows import Row

    T, whole = tir.T, spec.size[1] // 2
    starts, lanes = planar.columns(whole, whole, target)

    def move(start: Any) -> None:
        row = Row(o.x, read + 2 * start, 2, lanes)
        for column in (0, 1):
            tir.store(o.y, write + (column * spec.out.channel + start), row.tap(column), lanes)

    with T.serial(0, whole // lanes) as v:
        move(T.Bind(v * lanes))
    if whole % lanes:
        move(starts[-1])
    if spec.size[1] % 2:
        T.buffer_store(o.y, o.x[read + 2 * whole], [write + whole])
        T.buffer_store(o.y, T.float32(0), [write + (spec.out.channel + whole)])
