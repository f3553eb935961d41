"""Pooling of planes: windows that all lie in the image (2x2 in VGG), and the mean over the whole plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.compiler.ir import Epilogue, Layout, Shape, Step
from stages.compiler.kernels import planar
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.pool import runs
from stages.compiler.kernels.units import units
from stages.compiler.target import Target
from stages.schemes.scheme import LayerScheme


@dataclass(frozen=True)
class Spec:
    """All that the code depends on. ``window``: rows and columns of each; ``stride`` 0 where one window is the whole plane."""

    kind: str
    x: tuple[int, int, int, int]
    window: tuple[int, int]
    stride: int
    out: Layout
    extras: tuple[planar.Operand, ...]
    epilogue: Epilogue


def build(placed: Placed, scheme: LayerScheme, target: Target) -> Kernel | None:
    """The kernel of a "pool" step that reads planes, None for any other and for windows that reach beyond the image."""
    step, out, source = placed.step, placed.output, placed.inputs[0]
    if step.op != "pool" or not planar.is_plane(source) or not fits(step, source.shape, out.shape, target):
        return None
    whole = out.shape[2:] == (1, 1)
    if not (whole or planar.suits(placed)):
        return None
    ((_, _, y0, _, kh, _),), ((_, _, x0, sw, kw, _),) = runs(step.attrs["rows"]), runs(step.attrs["cols"])
    x = (source.origin + y0 * source.cols + x0, source.image, source.channel, source.cols)
    spec = Spec(step.attrs["kind"], x, (kh, kw), 0 if whole else sw, out, planar.operands(placed), step.epilogue)
    return Kernel("planar_pool", spec, step, {}, "", 0, f"planes: {step.attrs['kind']} pooling", units([planar.dims(out)]))


def fits(step: Step, source: Shape, out: Shape, target: Target) -> bool:
    """Whether all windows of a "pool" step are alike and lie in the image, one or two pixels apart; or there is but one."""
    rows, cols = runs(step.attrs["rows"]), runs(step.attrs["cols"])
    if len(rows) != 1 or len(cols) != 1 or (rows[0][5], cols[0][5]) != (rows[0][4], cols[0][4]):
        return False
    if out[2:] == (1, 1):
        return source[2:] != (1, 1) and len(step.inputs) == 1
    return out[3] >= target.narrow[-1] and rows[0][3] == cols[0][3] and cols[0][3] in (1, 2)


def emit(spec: Spec, name: str, target: Target) -> Any:
    """The kernel's PrimFunc."""
    from stages.compiler.kernels import tir

    plane, dims = _rows if spec.stride else _whole, planar.dims(spec.out)

    def body(o: Any) -> None:
        tir.nest(o, units([dims]), dims, lambda n, part, c: plane(o, spec, n, c, part, target))

    return tir.function(name, body)


def _join(spec: Spec, a: Any, b: Any) -> Any:
    from stages.compiler.kernels import tir

    return tir.tirx.max(a, b) if spec.kind == "max" else a + b


def _whole(o: Any, spec: Spec, n: Any, c: Any, _: Any, target: Target) -> None:
    """One number a plane: vectors along the rows, summed over rows, then over lanes."""
    from stages.compiler.kernels import tir

    T, (height, width) = tir.T, spec.window
    source = T.Bind(spec.x[0] + n * spec.x[1] + c * spec.x[2])
    parts = tir.widths(width, target.narrow)
    acc = T.alloc_buffer((width,), "float32", scope="local")
    for start, lanes in parts:
        tir.store(acc, start, o.x[tir.at(source + start, lanes)], lanes)
    with T.serial(1, height) as y:
        for start, lanes in parts:
            slot = tir.at(start, lanes)
            T.buffer_store(acc, _join(spec, acc[slot], o.x[tir.at(source + y * spec.x[3] + start, lanes)]), [slot])
    total = acc[0]
    for start in range(1, width):
        total = T.Bind(_join(spec, total, acc[start]))
    value = total if spec.kind == "max" else total * T.float32(1.0 / (height * width))
    planar.finish(o, value, spec.epilogue, spec.extras, n, c, 0, 1, spec.out)


def _rows(o: Any, spec: Spec, n: Any, c: Any, part: Any, target: Target) -> None:
    from stages.compiler.kernels import tir
    from stages.compiler.kernels.planar_rows import Row, mask

    T, out, (kh, kw) = tir.T, spec.out, spec.window
    starts, lanes = planar.columns(out.shape[3], out.cols, target)
    start = T.Bind(n * out.image + c * out.channel)
    planar.zero_frame(o, start, out, part, out.parts, target.narrow)
    rows = out.shape[2] // out.parts
    source = T.Bind(spec.x[0] + n * spec.x[1] + c * spec.x[2])
    with T.serial(part * rows, part * rows + rows) as y:
        for col in starts:
            value: Any = None
            for r in range(kh):
                row = Row(o.x, source + (y * spec.stride + r) * spec.x[3] + col * spec.stride, spec.stride, lanes)
                for tap in range(kw):
                    value = row.tap(tap) if value is None else T.Bind(_join(spec, value, row.tap(tap)))
            value = value if spec.kind == "max" else value * tir.splat(1.0 / (kh * kw), lanes)
            planar.finish(o, value, spec.epilogue, spec.extras, n, c, y * out.cols + col, lanes, out, mask(out.shape[3], lanes))
