"""The code that transforms one tile of a Winograd convolution, inputs and results: vectors along channels, sums and multiplications only. Imports TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stages.compiler.ir import View, costly, round_up
from stages.compiler.kernels import epilogue, tir
from stages.compiler.kernels.tir import T, tirx
from stages.compiler.kernels.winograd_shape import TOGETHER, Shape
from stages.compiler.kernels.winograd_transforms import TAPS, Combine, constants, input_transform, kernel_transform, output_transform
from stages.compiler.target import Target

if TYPE_CHECKING:
    from stages.compiler.kernels.winograd import Spec


def transform_input(o: Any, shape: Shape, x: View, tile: Any, slot: Any, target: Target) -> None:
    """All channels of tile number ``tile`` into place ``slot`` of V. What lies beyond the frame counts as zero and isn't read."""
    (m_rows, m_cols), lanes = shape.blocking.m, shape.blocking.lanes
    rows, cols = m_rows + 2, m_cols + 2
    image, row, col = _position(shape, tile)
    source = T.Bind(x[0] + image * x[1] + row * (m_rows * x[2]) + col * (m_cols * x[3]))

    def vector(height: int, width: Any, channel: Any, v: Any, wide: int) -> None:
        """``wide`` channels; ``height`` x ``width`` of the tile's inputs exist."""
        combine = combiner(o, shape, wide)

        def index(i: Any, j: Any) -> Any:
            return tir.at(v + (i * cols + j) * shape.v_pitch, wide)

        def keep(values: Sequence[Any], index: Callable[[int], Any]) -> None:
            for k, value in enumerate(values):
                T.buffer_store(o.s, tir.splat(0, wide) if value is None else value, [index(k)])

        def column(j: Any) -> list[Any]:
            return [T.Bind(o.x[tir.at(source + channel + (i * x[2] + j * x[3]), wide)]) if i < height else None for i in range(rows)]

        if staged(shape, target):
            with T.serial(0, width) as j:
                keep(input_transform(m_rows, column(j), combine), lambda i: index(i, j))
            with T.serial(width, cols) as j:
                keep([None] * rows, lambda i: index(i, j))
            with T.serial(0, rows) as i:
                keep(input_transform(m_cols, [T.Bind(o.s[index(i, j)]) for j in range(cols)], combine), lambda j: index(i, j))
        else:
            columns = [input_transform(m_rows, column(j) if j < width else [None] * rows, combine) for j in range(cols)]
            for i in range(rows):
                keep(input_transform(m_cols, [c[i] for c in columns], combine), lambda j, i=i: index(i, j))  # type: ignore[misc]

    def channels(height: int, width: Any) -> None:
        whole, rest = divmod(round_up(shape.channels, target.narrow[-1]), lanes)
        if whole:
            with T.serial(0, whole) as c:
                vector(height + TAPS - 1, width + TAPS - 1, c * lanes, c * shape.v_block + slot * lanes, lanes)
        for start, wide in tir.widths(rest, target.narrow):
            vector(height + TAPS - 1, width + TAPS - 1, whole * lanes + start, slot * lanes + (whole * shape.v_block + start), wide)

    if staged(shape, target):
        _by_size(shape, 1, row, lambda height: channels(height, _size(shape, 2, col)))
    else:
        _by_size(shape, 1, row, lambda height: _by_size(shape, 2, col, lambda width: channels(height, width)))


def transform_output(o: Any, shape: Shape, spec: Spec, filters: Any, tile: Any, slot: Any, target: Target) -> None:
    """The filters of one unit of tile number ``tile`` from place ``slot`` of Q: bias, the largest of each 2x2 if ``spec.pooled``, epilogue, store."""
    (m_rows, m_cols), lanes = shape.blocking.m, shape.blocking.lanes
    rows, cols = m_rows + 2, m_cols + 2
    image, row, col = _position(shape, tile)
    view, extras, items = spec.out.view, spec.extras, spec.epilogue
    late, step = costly(items), 2 if spec.pooled else 1

    def vector(height: Any, width: int, channel: Any, q: Any, wide: int) -> None:
        """``wide`` filters; ``height`` x ``width`` of the tile's results exist."""
        combine = combiner(o, shape, wide)
        bias = T.Bind(o.b[tir.at(channel, wide)])

        def index(i: Any, j: Any) -> Any:
            return tir.at(q + (i * cols + j) * shape.q_pitch, wide)

        def column(j: Any) -> list[Any]:
            return output_transform(m_rows, [T.Bind(o.s[index(i, j)]) for i in range(rows)], combine)

        def place(i: Any, j: Any) -> epilogue.Place:
            return epilogue.Place((image, row * (m_rows // step) + i, col * (m_cols // step) + j), channel, wide)

        def finish(i: Any, products: Sequence[Sequence[Any]]) -> None:
            """Row ``i`` of the results from one row of products, or two."""
            lines = [output_transform(m_cols, line, combine)[:width] for line in products]
            for j in range(width // step):
                value = lines[0][j * step]
                for other in [line[j * step + k] for line in lines for k in range(step)][1:]:
                    value = T.Bind(tirx.max(value, other))
                epilogue.finish(o, value + bias, () if late else items, place(i, j), view, extras)

        if staged(shape, target):
            with T.serial(0, cols) as j:
                for i, value in enumerate(column(j)):
                    T.buffer_store(o.s, value, [index(i, j)])
            with T.serial(0, height if step == 1 else tirx.truncdiv(height, step)) as i:
                finish(i, [[T.Bind(o.s[index(i * step + k, j)]) for j in range(cols)] for k in range(step)])
        else:
            columns = [column(j) for j in range(cols)]
            for i in range(height // step):
                finish(i, [[c[i * step + k] for c in columns] for k in range(step)])
        if late:  # the results are still in the first-level cache
            with T.serial(0, height) as i, T.serial(0, width) as j:
                epilogue.finish(o, o.y[place(i, j).index(view)], items, place(i, j), view, extras)

    def channels(height: Any, width: int) -> None:
        q = T.Bind(shape.q + slot * lanes)
        whole, rest = divmod(round_up(shape.filters, target.narrow[-1]), lanes)
        vectors = shape.span // lanes
        here = T.Bind(tirx.min(whole - filters * vectors, vectors)) if whole % vectors or rest else vectors
        with T.serial(0, here) as c:
            vector(height, width, T.Bind((filters * vectors + c) * lanes), T.Bind(q + c * (shape.most * lanes)), lanes)
        if rest:
            with T.If(filters == shape.filter_units - 1), T.Then():
                for start, wide in tir.widths(rest, target.narrow):
                    vector(height, width, T.int32(whole * lanes + start), T.Bind(q + whole % vectors * (shape.most * lanes) + start), wide)

    if staged(shape, target):
        _by_size(shape, 2, col, lambda width: channels(_size(shape, 1, row), width))
    else:
        _by_size(shape, 1, row, lambda height: _by_size(shape, 2, col, lambda width: channels(height, width)))


def transform_weights(o: Any, shape: Shape, channel: Any, k: Any, f: Any) -> None:
    """The weights of one input channel for vector ``f`` of a block's filters into U: ``channel`` counts through all blocks of filters, ``k`` within the chunk."""
    (m_rows, m_cols), lanes = shape.blocking.m, shape.blocking.lanes
    combine = combiner(o, shape, lanes)
    source = T.Bind(channel * (TAPS * TAPS * shape.wide) + f * lanes)
    here = T.Bind(shape.u + tirx.truncdiv(k, TOGETHER) * shape.u_block + tirx.truncmod(k, TOGETHER) * shape.wide + f * lanes)

    def column(j: int) -> list[Any]:
        return kernel_transform(m_rows, [T.Bind(o.w[tir.at(source + (i * TAPS + j) * shape.wide, lanes)]) for i in range(TAPS)], combine)

    columns = [column(j) for j in range(TAPS)]
    for i in range(m_rows + 2):
        for j, value in enumerate(kernel_transform(m_cols, [c[i] for c in columns], combine)):
            tir.store(o.s, here + (i * (m_cols + 2) + j) * shape.u_pitch, value, lanes)


def staged(shape: Shape, target: Target) -> bool:
    """Whether a tile is too large for the registers: then its columns are transformed in one loop and its rows in another, in place in scratch memory."""
    return shape.places > 1.25 * target.registers


def store_constants(o: Any, shape: Shape) -> None:
    """Put the transforms' factors into scratch memory, once a call.

    As literals LLVM would hold them in registers throughout the kernel, and the products' sums would no longer fit; what lies in memory that is written to, it must load where it is used.
    """
    for k, value in enumerate(constants(shape.blocking.m)):
        T.buffer_store(o.s, T.float32(value), [shape.constants + k])


def combiner(o: Any, shape: Shape, lanes: int) -> Combine:
    """How vectors of ``lanes`` floats are summed; None stands for a vector of zeros."""
    known = constants(shape.blocking.m)

    def scaled(factor: float, value: Any) -> Any:
        return value if factor == 1 else value * T.broadcast(o.s[shape.constants + known.index(factor)], lanes)

    def combine(terms: Sequence[tuple[float, Any]]) -> Any:
        result = None
        for factor, value in sorted((t for t in terms if t[1] is not None), key=lambda t: (abs(t[0]) != 1, t[0] < 0)):
            term = scaled(abs(factor), value)
            if result is None:
                result = term if factor > 0 else tir.splat(0, lanes) - term
            else:
                result = result + term if factor > 0 else result - term
        return None if result is None else T.Bind(result)

    return combine


def _position(shape: Shape, tile: Any) -> tuple[Any, Any, Any]:
    """(image, row, column) of a tile in the grid of tiles."""
    _, rows, cols = shape.grid
    line = T.Bind(tirx.truncdiv(tile, cols))
    return T.Bind(tirx.truncdiv(line, rows)), T.Bind(tirx.truncmod(line, rows)), T.Bind(tirx.truncmod(tile, cols))


def _size(shape: Shape, axis: int, index: Any) -> Any:
    """How many results the tiles of this row or column of the grid have along ``axis``, at run time."""
    m = shape.blocking.m[axis - 1]
    return T.Bind(tirx.min(shape.dims[axis] - index * m, m))


def _by_size(shape: Shape, axis: int, index: Any, body: Callable[[int], None]) -> None:
    """``body(results along the axis)``: code of its own for the last row or column of tiles where it sticks out."""
    m, tiles = shape.blocking.m[axis - 1], shape.grid[axis]
    left = shape.dims[axis] - (tiles - 1) * m
    if left == m or tiles == 1:
        body(left)
        return
    with T.If(index == tiles - 1):
        with T.Then():
            body(left)
        with T.Else():
            body(m)
