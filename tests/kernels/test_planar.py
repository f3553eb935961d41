"""Kernels on planes, wherever an arrangement can put them: results equal PyTorch's, the arrangement follows the estimates, and frames stay zero in any split among threads."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_kit import Fire, assert_equal, inputs, randomised
from torch import Tensor, nn

from stages.compiler import CompiledModel, api, compile_model
from stages.compiler.arrange import arrange
from stages.compiler.ir import Program, Step, Value
from stages.compiler.kernels import planar, planar_conv_cost, units
from stages.compiler.kernels.kernel import Placed
from stages.compiler.target import Target, arm64, avx2, resolve
from stages.graph import trace
from stages.schemes import LayerScheme, prune_, uniform_scheme


def likes_planes(step: Step, program: Program, on_planes: bool, target: Target) -> float:
    """As much on planes as can be."""
    return -float(on_planes)


def on_planes(module: nn.Module, *shape: int, rate: float = 2.0, threads: int = 1, divided: bool = False, machine: Target | None = None) -> CompiledModel:
    """The pruned network compiled with planes wherever possible; compared on other inputs than the compiler's own check. ``divided``: small planes too among threads and by bands, and pixels asked for ahead."""
    machine = machine or resolve("host")
    module, example = randomised(module), inputs(*shape)
    scheme = uniform_scheme(trace(module, example), "block-punched", rate, 8)
    prune_(module, scheme)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "arrange", functools.partial(arrange, cost=likes_planes))
        if divided:
            patch.setattr(planar, "_SHARE", 1)
            patch.setattr(planar, "_HALO", 99.0)
            machine = dataclasses.replace(machine, reach=dataclasses.replace(machine.reach, second=5000, ahead=3))
        patch.setattr(api, "resolve", lambda name: machine)
        model = compile_model(module, example, scheme, threads=threads)
    assert_equal(model, module, inputs(*shape, seed=5))
    return model


def kernels(model: CompiledModel) -> list[str]:
    return [k["kernel"] for k in model.manifest["kernels"]]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 20),
    filters=st.integers(1, 30),
    height=st.integers(1, 20),
    width=st.integers(4, 37),
    kernel=st.sampled_from([1, 3, 5]),
    dilation=st.integers(1, 2),
    activation=st.sampled_from([nn.ReLU, nn.Hardswish, nn.SiLU]),
    threads=st.integers(1, 3),
    divided=st.booleans(),
)
def test_convolutions(batch: int, channels: int, filters: int, height: int, width: int, kernel: int, dilation: int, activation: type, threads: int, divided: bool) -> None:
    convolution = nn.Conv2d(channels, filters, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    again = nn.Conv2d(filters, 9, 3, padding=1)
    model = on_planes(nn.Sequential(convolution, activation(), again), batch, channels, height, width, threads=threads, divided=divided)
    assert kernels(model) == ["boundary", "planar_conv", "planar_conv", "boundary"]


@settings(max_examples=40, deadline=None)
@given(
    before=st.booleans(),
    channels=st.integers(1, 12),
    filters=st.integers(1, 30),
    height=st.integers(2, 30),
    width=st.integers(8, 120),
    kernel=st.sampled_from([1, 2, 3, 4, 5, 7]),
    dilation=st.integers(1, 2),
    activation=st.sampled_from([nn.ReLU, nn.SiLU]),
    threads=st.integers(1, 3),
    divided=st.booleans(),
)
def test_strided_convolutions(
    before: bool, channels: int, filters: int, height: int, width: int, kernel: int, dilation: int, activation: type, threads: int, divided: bool
) -> None:
    strided = nn.Conv2d(channels, filters, kernel, 2, dilation * (kernel - 1) // 2, dilation)
    layers = [nn.Conv2d(channels, channels, 1)] * before + [strided, activation(), nn.Conv2d(filters, 9, 3, padding=1)]
    if strided(inputs(2, channels, height, width)).shape[2:] != (-(-height // 2), -(-width // 2)):
        height, width = 2 * height, 2 * width  # windows of an even size don't halve an odd one
    model = on_planes(nn.Sequential(*layers), 2, channels, height, width, threads=threads, divided=divided)
    first = ["boundary", "planar_conv"] if before else []  # what comes in is folded on its way
    assert kernels(model) == [*first, "space_to_depth", "planar_conv", "planar_conv", "boundary"]


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 9),
    height=st.integers(5, 20),
    width=st.integers(9, 40),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 3),
    activation=st.sampled_from([nn.ReLU6, nn.SiLU, nn.Sigmoid]),  # the last two run after the sums, and a sigmoid of the frame's zeros is none
    threads=st.integers(1, 3),
    divided=st.booleans(),
)
def test_depthwise_convolutions(channels: int, height: int, width: int, kernel: int, stride: int, padding: int, activation: type, threads: int, divided: bool) -> None:
    padding = min(padding, kernel // 2)
    if min(height, width) + 2 * padding - kernel < 4 * stride:
        kernel, padding = 3, 1
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels)
    model = on_planes(nn.Sequential(nn.Conv2d(3, channels, 1), depthwise, activation(), nn.Conv2d(channels, 8, 3, padding=1)), 1, 3, height, width, threads=threads, divided=divided)
    assert channels == 1 or "planar_depthwise" in kernels(model)


@pytest.mark.skipif(resolve("host").isa == "neon", reason="runs x86 code")
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(7, 9), (14, 14), (29, 37)])
def test_depthwise_convolutions_with_few_registers(kernel: int, height: int, width: int) -> None:
    depthwise = nn.Conv2d(5, 5, kernel, padding=kernel // 2, groups=5)
    model = on_planes(nn.Sequential(nn.Conv2d(3, 5, 1), depthwise, nn.SiLU(), nn.Conv2d(5, 8, 1)), 1, 3, height, width, machine=avx2("haswell"))
    assert "planar_depthwise" in kernels(model)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)])
@pytest.mark.parametrize("size", [(16, 16), (21, 34)])
@pytest.mark.parametrize("threads", [1, 2])
def test_pooling(pool: nn.Module, size: tuple[int, int], threads: int) -> None:
    on_planes(nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), pool, nn.Conv2d(20, 8, 1)), 3, 3, *size, threads=threads, divided=threads > 1)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("size", "divided"), [((40, 40), False), ((37, 53), False), ((48, 40), True)])
def test_a_network_of_everything(threads: int, size: tuple[int, int], divided: bool) -> None:
    found = kernels(on_planes(Fire(kernel=5), 2, 3, *size, threads=threads, divided=divided))
    assert {"planar_conv", "planar_depthwise", "planar_pool", "planar_elementwise", "relayout", "gather"} <= set(found)


class Gated(nn.Module):
    """Squeeze and excitation before a 1x1 convolution with a residual sum, filters that leave a remainder."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.squeeze, self.excite, self.project = nn.Conv2d(13, 27, 1), nn.Conv2d(27, 6, 1), nn.Conv2d(6, 27, 1), nn.Conv2d(27, 13, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


@pytest.mark.parametrize(("threads", "divided"), [(1, False), (3, False), (1, True), (2, True)])
def test_gates_go_into_the_weights_behind_them(threads: int, divided: bool) -> None:
    assert "planar_elementwise" not in kernels(on_planes(Gated(), 1, 13, 20, 22, threads=threads, divided=divided))
    assert "planar_elementwise" in kernels(on_planes(Gated(), 2, 13, 20, 22))  # each image has its own gate
    assert "planar_elementwise" in kernels(on_planes(Gated(), 1, 13, 1, 5))  # there are more weights than pixels


def test_a_residual_sum_and_a_strided_layer_between_planes() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 3, 2, 1)
            self.d, self.short = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(16, 24, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            x = torch.relu(x + self.b(x))
            return torch.relu(self.d(torch.relu(self.c(x))) + self.short(x))

    assert kernels(on_planes(Residual(), 1, 3, 30, 46)).count("space_to_depth") == 1  # both strided layers read it


def test_the_estimates_decide() -> None:
    network = randomised(nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)))
    example = inputs(1, 32, 28, 28)
    scheme = uniform_scheme(trace(network, example), "block-punched", 6.0, 4)
    dense = compile_model(network, example)
    assert "planar_conv" not in kernels(dense)  # nothing is sparse
    prune_(network, scheme)
    assert kernels(compile_model(network, example, scheme)).count("planar_conv") == 2  # groups of 4 fill half a vector of channels at best


def test_arrangements_without_sparse_convolutions_are_left_alone() -> None:
    step = Step("a", "conv", ("x",), "y", {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}, np.ones((8, 8, 1, 1), np.float32), np.zeros(8, np.float32))
    values = {name: Value(name, (1, 8, 16, 16)) for name in ("x", "y")}
    program = Program((Step("x", "input", ("input:0",), "x"), step), values, (), ())
    assert arrange(program, resolve("host"), likes_planes).planes == {}
    sparse = Program((program.steps[0], Step(**{**step.__dict__, "scheme": LayerScheme("keep", "block-punched", 2.0, 8)})), values, (), ())
    assert set(arrange(sparse, resolve("host"), likes_planes).planes) == {"x", "y"}


@given(shape=st.tuples(st.just(1), st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)), pad=st.integers(0, 3), wider=st.sampled_from([1.0, 1.11]))
def test_planes_hold_every_pixel_and_neighbour(shape: tuple[int, int, int, int], pad: int, wider: float) -> None:
    layout = planar.layout(shape, pad, wider)
    first, last = layout.origin, layout.origin + planar.span(layout) - 1
    reach = pad * layout.cols + pad
    assert first % planar.ALIGNED == 0 and first - reach >= 0
    assert last + reach < layout.channel  # a neighbour of the last pixel is still in the plane
    assert first + -(-planar.span(layout) // 16) * 16 <= layout.channel
    assert layout.channel // planar.ALIGNED % 2 == 1  # planes at odd distances spread over all sets of a cache
    inside = planar.inside(layout, 16)
    assert inside.sum() == shape[2] * shape[3]
    assert shape[3] + pad <= layout.cols <= wider * (shape[3] + pad)


def test_rows_begin_at_cache_lines_where_that_adds_little() -> None:
    wide = Target("x86_64-unknown-linux-gnu", "znver4", "avx512", 16, (16, 8, 4), 32, True)

    def cols(halo: int, target: Target) -> list[int]:
        return [planar.layout((1, 1, size, size), 1, planar.wider(halo, target)).cols for size in (7, 14, 28, 30)]

    assert cols(2, wide) == [8, 16, 29, 32]
    assert cols(0, wide) == cols(2, arm64("generic")) == [8, 15, 29, 31]


def test_threads_have_rows_of_their_own_where_planes_are_large() -> None:
    def parts(images: int, size: int, threads: int, halo: int = 0) -> int:
        return planar.parts(planar.layout((images, 1, size, size), 1), halo, threads)

    assert [parts(1, 56, threads) for threads in (1, 2, 4, 5)] == [1, 2, 4, 1]  # 56 rows aren't five times as many
    assert (parts(2, 56, 2), parts(2, 56, 4), parts(3, 56, 2)) == (1, 2, 2)  # whole images are shares too
    assert (parts(1, 14, 2), parts(1, 28, 2), parts(1, 28, 2, halo=2), parts(1, 56, 2, halo=4), parts(1, 56, 2, halo=6)) == (1, 2, 1, 2, 1)


def test_bands_keep_the_input_in_the_second_level_cache() -> None:
    target = dataclasses.replace(resolve("host"), reach=dataclasses.replace(resolve("host").reach, second=1 << 20))

    def bands(channels: int, size: int, parts: int = 1, weights: int = 1 << 16, by_pixels: bool = False, **attrs: int) -> int:
        made = dataclasses.replace(planar.layout((1, channels, size, size), 1), parts=parts)
        return planar_conv_cost.bands(weights, Placed(Step("a", "conv", ("x",), "y", attrs), (made,), made), by_pixels, target)

    image = planar.layout((1, 128, 112, 112), 1).size * 4
    for parts in (1, 2, 3):
        found = bands(128, 112, parts)
        assert found % parts == 0 and image / found <= target.reach.second / 2 < image / (found - parts)
    assert bands(64, 56) == bands(128, 112, by_pixels=True) == bands(128, 112, split=2) == 1
    assert bands(64, 56, parts=2) == 2 and bands(64, 56, parts=2, weights=1 << 22) == 1  # every thread would read all weights


@given(total=st.integers(1, 200), parts=st.integers(1, 9), size=st.integers(1, 12))
def test_shares_cover_everything_once_and_are_alike(total: int, parts: int, size: int) -> None:
    found = units.shares(total, parts, size)
    assert len({s for s, _, _ in found}) == len(found) and max(s for s, _, _ in found) <= size
    sizes = []
    for part in range(parts):
        spans = sorted((firsts[part] + k * s, s) for s, firsts, counts in found for k in range(counts[part]))
        sizes.append(sum(s for _, s in spans))
        begin = total * part // parts
        assert [start for start, _ in spans] == [begin + sum(s for _, s in spans[:i]) for i in range(len(spans))]
    assert sum(sizes) == total and max(sizes) - min(sizes) <= 1


@given(width=st.integers(1, 120), frame=st.integers(0, 3), target=st.sampled_from([resolve("host"), arm64("generic")]))
def test_vectors_cover_a_row_and_only_one_alone_leaves_it(width: int, frame: int, target: Target) -> None:
    starts, lanes = planar.columns(width, width + frame, target)
    covered = {start + i for start in starts for i in range(lanes)}
    assert covered >= set(range(width)) and len(starts) == -(-width // lanes)
    assert max(covered) < (width if len(starts) > 1 else width + frame)


def test_narrow_rows_use_their_frame() -> None:
    avx512 = Target("x86_64-unknown-linux-gnu", "znver4", "avx512", 16, (16, 8, 4), 32, True)
    assert planar.columns(28, 29, avx512) == ([0, 12], 16)
    assert planar.columns(14, 16, avx512) == ([0], 16)
    assert planar.columns(14, 15, avx512) == ([0, 6], 8)
    assert planar.columns(7, 9, avx512) == ([0], 8)
