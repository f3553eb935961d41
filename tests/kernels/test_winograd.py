"""Winograd kernels against PyTorch in double precision: every F, every edge, any split of the units, other processors' code; and the rule that chooses them."""

from __future__ import annotations

import ctypes
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import check, randomised
from test_targets import AVX2, NEON
from torch import Tensor, nn
from torch.nn import functional as F

from stages.compiler import target, toolchain
from stages.compiler.ir import Epilogue, Layout, Step, round_up
from stages.compiler.kernels import tir, winograd
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.kernels.winograd_cost import choose
from stages.compiler.kernels.winograd_shape import Blocking, Shape
from stages.compiler.kernels.winograd_transforms import input_transform, kernel_transform, matrices, output_transform
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme
from stages.schemes.scheme import DENSE

HOST = target.resolve("host")
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_the_transforms_are_exact(m: int) -> None:
    a, g, b = matrices(m)
    for k in range(m):
        for j in range(3):
            for i in range(m + 2):
                assert sum(a[k][t] * g[t][j] * b[t][i] for t in range(m + 2)) == (i == j + k)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
@given(data=st.data())
def test_the_factorised_transforms_convolve_integers_exactly(m: int, data: st.DataObject) -> None:
    number = st.integers(-100, 100)
    d = [Fraction(x) for x in data.draw(st.lists(number, min_size=m + 2, max_size=m + 2))]
    taps = [Fraction(x) for x in data.draw(st.lists(number, min_size=3, max_size=3))]

    def combine(terms: object) -> Fraction:
        return sum((Fraction(c).limit_denominator(1000) * v for c, v in terms), Fraction(0))  # type: ignore[attr-defined]

    transformed = [sum((c * x for c, x in zip(row, taps, strict=True)), Fraction(0)) for row in matrices(m)[1]]
    assert kernel_transform(m, taps, combine) == transformed
    products = [u * v for u, v in zip(transformed, input_transform(m, d, combine), strict=True)]
    assert output_transform(m, products, combine) == [sum(d[k + j] * taps[j] for j in range(3)) for k in range(m)]


class Case:
    """One layer: random input, weights, Layouts as the planner makes them, and the right answer."""

    def __init__(
        self, shape: tuple[int, int, int, int], filters: int, padding: tuple[int, int] = (1, 1), epilogue: Epilogue = (), extra: int = 0, quantum: int = 4
    ):
        n, c, h, w = shape
        g = np.random.default_rng(sum(shape) + filters)
        self.image = g.standard_normal(shape, dtype=np.float32)
        self.weight = (g.standard_normal((filters, c, 3, 3)) * (2 / (9 * c)) ** 0.5).astype(np.float32)
        self.bias = g.standard_normal(filters).astype(np.float32)
        oh, ow = h + 2 * padding[0] - 2, w + 2 * padding[1] - 2
        source = Layout(shape, round_up(c, quantum) + extra, (padding[0], padding[1], padding[0], padding[1]))
        made = Layout((n, filters, oh, ow), round_up(filters, quantum), (1, 0, 2, 1))
        self.further = g.standard_normal(made.shape, dtype=np.float32)
        reads = any(item[0] == "add" for item in epilogue)
        attrs = {"stride": (1, 1), "padding": padding, "dilation": (1, 1)}
        step = Step("layer", "conv", ("x", "e") if reads else ("x",), "y", attrs, self.weight, self.bias, epilogue)
        self.placed = Placed(step, (source, made) if reads else (source,), made)
        self.padding, self.epilogue = padding, epilogue

    def shape(self, blocking: Blocking) -> Shape:
        n, filters, h, w = self.placed.output.shape
        return Shape((n, h, w), self.weight.shape[1], filters, blocking)

    def expected(self) -> np.ndarray:
        x, w, b = (torch.from_numpy(a).double() for a in (self.image, self.weight, self.bias))
        y = F.conv2d(x, w, b, padding=self.padding)
        for item in self.epilogue:
            y = {"relu": F.relu, "silu": F.silu, "hardswish": F.hardswish}[item[0]](y) if item[0] != "add" else y + torch.from_numpy(self.further).double()
        return y.numpy()

    def run(self, kernel: Kernel, folder: Path, parts: int = 1, machine: target.Target = HOST) -> np.ndarray:
        """The result; frame and everything outside the pixels of ``y`` checked; ``parts`` ranges of units at the same time, each with scratch of its own."""
        call = _load(kernel, folder, machine)
        x = _placed(self.image, self.placed.inputs[0])
        e = _placed(self.further, self.placed.output)
        y = _aligned(self.placed.output.size)
        y[:] = np.nan
        data = {name: _copy(a) for name, a in kernel.data.items()}
        bounds = [kernel.units * part // parts for part in range(parts + 1)]

        def part(index: int) -> None:
            scratch = _aligned(kernel.scratch // 4)
            scratch[:] = np.nan
            pointers = [a.ctypes.data if a is not None else None for a in (x, e, None, None, data["w"], data["b"], None, None, y, scratch)]
            call(*map(ctypes.c_void_p, pointers), ctypes.c_int32(bounds[index]), ctypes.c_int32(bounds[index + 1]))

        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(part, range(parts)))
        return _unplaced(y, self.placed.output)


def _load(kernel: Kernel, folder: Path, machine: target.Target) -> ctypes._FuncPtr:  # type: ignore[name-defined]
    name = f"k{len(list(folder.iterdir()))}"
    tir.write_object(winograd.emit(kernel.spec, name, machine), machine.tvm(), folder / f"{name}.o")
    toolchain.run([*toolchain.host(), "-shared", "-o", f"{name}.so", f"{name}.o"], folder)
    return getattr(ctypes.CDLL(str(folder / f"{name}.so")), name)


def _aligned(floats: int) -> np.ndarray:
    room = np.zeros(floats + 16, np.float32)
    first = -(room.ctypes.data // 4) % 16
    return room[first : first + floats]


def _copy(array: np.ndarray) -> np.ndarray:
    made = _aligned(array.size)
    made[:] = array
    return made


def _placed(values: np.ndarray, layout: Layout) -> np.ndarray:
    """``values`` where the Layout says, zeros in the frame, not-a-number in the channels that pad a pixel."""
    flat = _aligned(layout.size)
    n, c, h, w = values.shape
    pixels = flat.reshape(n, layout.rows, layout.cols, layout.pitch)
    top, left = layout.border[:2]
    pixels[:, top : top + h, left : left + w] = np.nan
    pixels[:, top : top + h, left : left + w, :c] = values.transpose(0, 2, 3, 1)
    return flat


def _unplaced(flat: np.ndarray, layout: Layout) -> np.ndarray:
    n, c, h, w = layout.shape
    pixels = flat.reshape(n, layout.rows, layout.cols, layout.pitch).copy()
    top, left = layout.border[:2]
    found = pixels[:, top : top + h, left : left + w, :c].transpose(0, 3, 1, 2).copy()
    pixels[:, top : top + h, left : left + w] = 0
    assert not pixels.any()  # the frame is zero
    return found


SIZES = [(2, 2), (4, 2), (2, 5), (4, 4), (5, 5), (6, 6)]
TOLERANCE = {2: 2e-5, 3: 1e-4, 4: 2e-4, 5: 4e-4, 6: 4e-4}  # absolute; results are of the order of 1


@few
@given(data=st.data())
def test_any_shape_and_blocking(data: st.DataObject, tmp_path: Path) -> None:
    m = (data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6)))
    padding = (data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), data.draw(st.integers(3, 19)), data.draw(st.integers(3, 19)))
    epilogue = data.draw(st.sampled_from([(), (("relu",),), (("add", 0), ("relu",)), (("silu",),), (("hardswish",), ("add", 0))]))
    case = Case(shape, data.draw(st.integers(1, 90)), padding, epilogue, data.draw(st.sampled_from([0, 4, 16])))
    chunk, beside = data.draw(st.sampled_from([(0, 1), (0, 2), (0, 3), (1, 1), (7, 1), (16, 1), (40, 1)]))
    blocking = Blocking(*m, data.draw(st.integers(1, 20)), data.draw(st.sampled_from(HOST.narrow)), data.draw(st.integers(1, 4)), chunk, beside)
    machine = dataclasses.replace(HOST, reach=dataclasses.replace(HOST.reach, first=data.draw(st.sampled_from([500, 4000, 1 << 40]))))  # bytes: parts of a few input channels, or one
    kernel = winograd.kernel(case.placed, case.shape(blocking), "")
    np.testing.assert_allclose(case.run(kernel, tmp_path, machine=machine), case.expected(), rtol=0, atol=TOLERANCE[max(m)])


@pytest.mark.parametrize("m", SIZES, ids=str)
@pytest.mark.parametrize(("chunk", "beside"), [(0, 1), (0, 2), (8, 1)])
def test_parts_at_the_same_time_equal_one_call(m: tuple[int, int], chunk: int, beside: int, tmp_path: Path) -> None:
    case = Case((2, 24, 17, 14), 40)
    kernel = winograd.kernel(case.placed, case.shape(Blocking(*m, 5, HOST.lanes, 1, chunk, beside)), "")
    assert kernel.units > 6
    once = case.run(kernel, tmp_path)
    np.testing.assert_array_equal(once, case.run(kernel, tmp_path, parts=3))
    np.testing.assert_array_equal(once, case.run(kernel, tmp_path, parts=kernel.units))


@pytest.mark.parametrize(
    ("m", "largest", "rms"), [((2, 2), 1e-5, 1e-6), ((4, 2), 5e-5, 3e-6), ((4, 4), 2e-4, 6e-6), ((5, 5), 4e-4, 1.2e-5), ((6, 6), 4e-4, 1.2e-5)]
)
@pytest.mark.parametrize("chunk", [0, 16])
def test_rounding_errors_are_as_documented(m: tuple[int, int], largest: float, rms: float, chunk: int, tmp_path: Path) -> None:
    case = Case((1, 256, 14, 14), 64)
    error = case.run(winograd.kernel(case.placed, case.shape(Blocking(*m, 14, HOST.lanes, 2, chunk)), ""), tmp_path) - case.expected()
    assert np.abs(error).max() < largest
    assert np.sqrt((error**2).mean()) < rms


@pytest.mark.skipif(HOST.isa == "neon", reason="runs x86 code")
@pytest.mark.parametrize("m", SIZES, ids=str)
def test_avx2(m: tuple[int, int], tmp_path: Path) -> None:
    case = Case((1, 19, 11, 13), 37, epilogue=(("relu",),))
    _, shape = choose((1, 11, 13), 19, 37, AVX2)
    for chosen in (shape, case.shape(Blocking(*m, 7, 8, 2)), case.shape(Blocking(*m, 7, 8, 2, 8)), case.shape(Blocking(*m, 20, 8, 1, 0, 3))):
        kernel = winograd.kernel(case.placed, chosen, "")
        np.testing.assert_allclose(case.run(kernel, tmp_path, machine=AVX2), case.expected(), rtol=0, atol=TOLERANCE[6])


@pytest.mark.parametrize("m", SIZES, ids=str)
def test_neon_code_is_generated(m: tuple[int, int], tmp_path: Path) -> None:
    case = Case((1, 20, 9, 9), 24)
    kernel = winograd.kernel(case.placed, case.shape(Blocking(*m, 14, 4, 2)), "")
    tir.write_object(winograd.emit(kernel.spec, "k", NEON), NEON.tvm(), tmp_path / "k.o")
    assert (tmp_path / "k.o").read_bytes()[18] == 183  # ELF e_machine of AArch64


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)  # the caller's planar memory stays with another kernel
        return F.relu(self.two(F.relu(self.norm(self.one(x)))) + x)


def test_a_residual_block_runs_by_winograd() -> None:
    model = check(randomised(Residual(64)), (1, 64, 28, 28), tolerance=2e-4)
    rows = [row for row in model.manifest["kernels"] if row["kernel"] == "winograd"]
    assert len(rows) == 2
    assert all("as fast as the direct sum" in row["reason"] for row in rows)
    assert sum(row["macs"] for row in rows) == model.manifest["macs_dense"]


def test_a_pruned_layer_runs_dense_only_where_its_mask_saves_less() -> None:
    kinds = {}
    for rate in (1.5, 12.0):
        module = randomised(Residual(64))
        scheme = uniform_scheme(trace(module, torch.zeros(1, 64, 28, 28)), "block-punched", rate, 16)
        prune_(module, scheme)
        rows = check(module, (1, 64, 28, 28), scheme=scheme, tolerance=2e-4).manifest["kernels"]
        kinds[rate] = [(row["kernel"], row["reason"]) for row in rows if row["layer"] in ("one", "two", "conv2d", "conv2d_1")]
    assert [k for k, _ in kinds[1.5]] == ["winograd", "winograd"]
    assert all("since the mask saves less" in reason for _, reason in kinds[1.5])
    assert all(k in ("gather", "planar_conv") for k, _ in kinds[12.0])  # which of them depends on the processor


@given(channels=st.integers(1, 700), vectors=st.integers(1, 4), first=st.integers(64, 40_000))
def test_parts_of_the_input_channels_cover_all_of_them_once(channels: int, vectors: int, first: int) -> None:
    machine = dataclasses.replace(HOST, reach=target.Reach(first=first))
    parts = winograd._parts(Shape((1, 8, 8), channels, 32, Blocking(4, 4, 4, 8, vectors)), machine)
    covered = [begin + number * size + k for size, begin, times in parts for number in range(times) for k in range(size)]
    assert covered == list(range(channels))
    assert all(4 * 8 * vectors * size <= first for size, _, _ in parts[1:])


def test_inputs_beyond_the_second_level_are_read_for_several_blocks_of_filters() -> None:
    small = dataclasses.replace(HOST, reach=target.Reach(again=14.0, second=256 << 10))
    assert choose((1, 56, 56), 256, 256, small)[1].blocking.beside > 1
    assert choose((1, 56, 56), 256, 256, dataclasses.replace(HOST, reach=target.Reach()))[1].blocking.beside == 1


def test_weights_that_are_many_for_few_tiles_are_transformed_at_run_time() -> None:
    far = dataclasses.replace(HOST, reach=target.Reach(far=1.0, hidden=0.0))
    few, many = choose((1, 7, 7), 512, 512, far)[1], choose((1, 112, 112), 64, 64, far)[1]
    assert few.chunk and few.weights == 9 * 512 * 512 * 4
    assert not many.chunk and many.weights == many.places * 64 * 64 * 4


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, (3, 1)), nn.Conv2d(64, 64, 5)],
    ids=str,
)
def test_other_convolutions_are_left_to_others(conv: nn.Conv2d) -> None:
    padding = tuple(conv.padding)
    attrs = {"stride": conv.stride, "padding": padding, "dilation": conv.dilation}
    weight = conv.weight.detach().numpy()
    source = Layout((1, 64, 14, 14), 64, (2, 2, 2, 2))
    placed = Placed(Step("layer", "conv", ("x",), "y", attrs, weight, np.zeros(64, np.float32)), (source,), Layout((1, 64, 14, 14), 64))
    assert winograd.build(placed, DENSE, HOST) is None
