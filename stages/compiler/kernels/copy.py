"""Parts of tensors: concat (one copy an operand), slice, pad and channel shuffle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Layout, View
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.units import channel_blocks, units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``counts`` = (images, channels, rows, columns) copied; ``source`` and ``target`` are (first, step) for channel, row, column; ``fill`` goes everywhere else."""

    counts: tuple[int, int, int, int]
    source: tuple[tuple[int, int], ...]
    target: tuple[tuple[int, int], ...]
    x: View
    out: Layout
    fill: float | None
    frame: bool


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "copy" step, None for any other. Only the ``first`` of the copies into a Value zeroes its frame."""
    step = placed.step
    if step.op != "copy":
        return None
    a = step.attrs
    spec = Spec((placed.output.shape[0], *a["counts"]), a["source"], a["target"], placed.inputs[0].view, placed.output, a.get("fill"), a["first"])
    return Kernel("copy", spec, step, {}, "", 0, "copy of a part", _units(spec))


def _units(spec: Spec) -> int:
    """One where the rest is filled first: a part must not be overwritten by another thread's filling."""
    n, _, h, w = spec.counts
    return 1 if spec.fill is not None else units([(n, h, w)])


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    T = tir.T

    def body(o: Any) -> None:
        if spec.frame:
            tir.zero_frame(o, spec.out, target.narrow)
        n_, c_, h_, w_ = spec.counts
        (c0, cs), (y0, ys), (x0, xs) = spec.source
        (d0, ds), (v0, vs), (u0, us) = spec.target
        x, y = spec.x, spec.out.view
        if spec.fill is not None:
            _fill(o, spec, target)

        def pixel(n: Any, i: Any, j: Any) -> None:
            read = T.Bind(n * x[1] + (i * ys + y0) * x[2] + (j * xs + x0) * x[3] + (x[0] + c0))
            write = T.Bind(n * y[1] + (i * vs + v0) * y[2] + (j * us + u0) * y[3] + (y[0] + d0))
            if cs == ds == 1:
                for first, count, lanes, _ in channel_blocks(c_, target.narrow, 1):
                    with T.serial(0, count) as block:
                        tir.store(o.y, write + (block * lanes + first), o.x[tir.at(read + (block * lanes + first), lanes)], lanes)
            else:
                with T.serial(0, c_) as c:
                    T.buffer_store(o.y, o.x[read + c * cs], [write + c * ds])

        tir.nest(o, _units(spec), (n_, h_, w_), pixel)

    return tir.function(name, body)


def _fill(o: Any, spec: Spec, target: Target) -> None:
    from stages.compiler.kernels import tir

    assert spec.fill is not None
    n_, _, h_, w_ = spec.out.shape
    with tir.T.serial(0, n_) as n, tir.T.serial(0, h_) as i:
        tir.fill(o.y, tir.T.Bind(n * spec.out.image + i * spec.out.row + spec.out.origin), w_ * spec.out.pitch, spec.fill, target.narrow)
