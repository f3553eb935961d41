"""Each kernel rule against PyTorch, over drawn shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import assert_equal, check, inputs, randomised
from torch import Tensor, nn

from stages.compiler import api, compile_model
from stages.compiler.kernels import gather, packing
from stages.compiler.kernels.pool import runs
from stages.compiler.kernels.units import channel_blocks, split
from stages.compiler.target import resolve
from stages.compiler.tuning import database
from stages.errors import UnsupportedOperator
from stages.schemes import prune_
from stages.schemes.scheme import LayerScheme, Scheme

HOST = resolve("host")
few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@few
@given(data=st.data())
def test_convolution_of_any_shape(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (2, 2)]))
    dilation = data.draw(st.sampled_from([1, 1, 2]))
    conv = nn.Conv2d(
        data.draw(st.integers(1, 19)),
        data.draw(st.integers(1, 70)),
        kernel,
        data.draw(st.sampled_from([1, 2, 3])),
        data.draw(st.integers(0, 2)),
        dilation,
        bias=data.draw(st.booleans()),
    )
    height, width = data.draw(st.integers(9, 20)), data.draw(st.integers(9, 40))
    check(randomised(conv), (data.draw(st.integers(1, 3)), conv.in_channels, height, width))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("kernel", "channels"), [(1, 320), (3, 40)])
@pytest.mark.parametrize("tile", [(1, 10), (1, 16), (3, 4), (2, 5)], ids=str)
def test_groups_of_many_weights_with_tiles_of_several_sizes(threads: int, kernel: int, channels: int, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    choice = database.plain("gather", gather.Choice(lanes=4, vectors=5, rows=tile[0], cols=tile[1], pixels_outer=False))
    monkeypatch.setattr(database, "find", lambda signature, target: (choice, "asked for"))
    module = randomised(nn.Sequential(nn.Conv2d(8, channels, 1), nn.ReLU(), nn.Conv2d(channels, 250, kernel, padding=kernel // 2), nn.ReLU()))
    model = compile_model(module, inputs(2, 8, 7, 7), threads=threads)
    assert_equal(model, module, inputs(2, 8, 7, 7))
    last = model.manifest["kernels"][-2]
    assert last["kernel"] == "gather" and 4 * channels * kernel**2 * 250 > packing.FAR_BYTES


@few
@given(data=st.data())
def test_depthwise_convolution_of_any_shape(data: st.DataObject) -> None:
    channels, kernel = data.draw(st.integers(2, 41)), data.draw(st.sampled_from([2, 3, 5, 7]))
    padding = data.draw(st.integers(0, kernel // 2))
    conv = nn.Conv2d(channels, channels, kernel, data.draw(st.sampled_from([1, 2])), padding, data.draw(st.sampled_from([1, 1, 2])), groups=channels)
    check(randomised(conv), (data.draw(st.integers(1, 2)), channels, data.draw(st.integers(14, 22)), data.draw(st.integers(14, 30))))


@pytest.mark.parametrize(("inner", "outer", "groups"), [(8, 16, 2), (12, 12, 3), (6, 12, 6), (64, 64, 4)])
def test_grouped_convolution(inner: int, outer: int, groups: int) -> None:
    check(randomised(nn.Conv2d(inner, outer, 3, padding=1, groups=groups)), (2, inner, 7, 9))


def test_grouped_convolution_computes_only_its_own_groups() -> None:
    model = check(randomised(nn.Conv2d(64, 64, 3, padding=1, groups=4)), (1, 64, 8, 8))
    assert model.manifest["macs"] == model.manifest["macs_dense"] == 64 * 16 * 9 * 64


@few
@given(batch=st.integers(1, 5), inner=st.integers(1, 70), outer=st.integers(1, 150))
def test_linear(batch: int, inner: int, outer: int) -> None:
    check(randomised(nn.Linear(inner, outer)), (batch, inner))


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_linear_layers_read_their_weights_from_several_places_at_a_time(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = dataclasses.replace(HOST, reach=dataclasses.replace(HOST.reach, streams=streams))
    monkeypatch.setattr(api, "resolve", lambda name: machine)
    for inner, pruning in ((301, "none"), (300, "block-based")):
        module = randomised(nn.Sequential(nn.Linear(inner, 130)))
        scheme = Scheme({"0": LayerScheme("keep", pruning, 3.0, 8)}) if pruning != "none" else Scheme()
        prune_(module, scheme)
        check(module, (1, inner), scheme=scheme)


def test_linear_behind_a_flattened_image_permutes_its_columns() -> None:
    check(randomised(nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 5 * 4, 7))), (2, 3, 7, 6))


POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, 2)),
    nn.AdaptiveAvgPool2d((None, 1)),
    nn.AdaptiveMaxPool2d(1),
    nn.AdaptiveMaxPool2d((3, 2)),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 10, 13), (1, 40, 7, 8)], ids=str)
def test_pooling(pool: nn.Module, shape: tuple[int, ...]) -> None:
    check(pool, shape)


def test_runs_of_equal_windows() -> None:
    assert runs([(0, 2, 2), (1, 4, 3), (3, 6, 3), (5, 8, 3), (7, 9, 2)]) == ((0, 1, 0, 0, 2, 2), (1, 3, 1, 2, 3, 3), (4, 1, 7, 0, 2, 2))
    assert runs([(0, 7, 7)]) == ((0, 1, 0, 0, 7, 7),)


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 2.0), nn.LeakyReLU(0.1), nn.SiLU(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.Tanh(), nn.Mish(), nn.ELU(0.7),
    nn.Softplus(), nn.Softplus(2.0, 3.0),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_alone_and_behind_a_convolution(activation: nn.Module) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 24, 1), activation

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.act(20 * x), self.act(self.conv(x))

    model = check(randomised(Both()), (1, 4, 5, 7), tolerance=1e-6)
    assert sum(k["kernel"] == "gather" for k in model.manifest["kernels"]) == 1
    assert len(model.manifest["kernels"]) <= 6  # two inputs and outputs, convolution, scaled activation: nothing apart


class Binary(nn.Module):
    def __init__(self, op: str, broadcast: bool):
        super().__init__()
        self.op, self.broadcast = op, broadcast

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if self.broadcast:
            y = y.mean((2, 3), keepdim=True) + 3
        return getattr(torch, self.op)(x, y + 3), getattr(torch, self.op)(y + 3, x * x + 1), getattr(torch, self.op)(x, 1.7)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("broadcast", [False, True], ids=["same shape", "one number a channel"])
def test_binary_operations(op: str, broadcast: bool) -> None:
    check(Binary(op, broadcast), (2, 11, 4, 5), (2, 11, 4, 5))


class Parts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = x.chunk(2, 1)
        joined = torch.cat([b, x, a], 1)
        padded = nn.functional.pad(x, (1, 2, 0, 3), value=0.5)
        return joined, padded, x[:, 1:7:2], torch.cat([x[:, :, 2:], x], 2)


def test_concat_slice_and_pad() -> None:
    check(Parts(), (2, 10, 6, 7))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_channel_shuffle() -> None:
    check(Shuffle(), (2, 12, 4, 5))


def test_batch_norm_that_finds_no_convolution() -> None:
    check(randomised(nn.Sequential(nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8))), (1, 9, 6, 6))


def test_tiles_and_blocks_cover_everything_once() -> None:
    for total in range(1, 40):
        covered = [first + tile * size + k for size, first, tiles in split(total, 7) for tile in range(tiles) for k in range(size)]
        assert covered == list(range(total))
        channels = [
            first + b * lanes * v + k for first, count, lanes, v in channel_blocks(total, (16, 8, 4), 4) for b in range(count) for k in range(lanes * v)
        ]
        assert channels == list(range(total))


class LayerScale(nn.Module):
    """ConvNeXt's gamma in both places in which it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.planes, self.last = nn.Parameter(torch.linspace(0.5, 1.5, 12)[:, None, None]), nn.Parameter(torch.linspace(-1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.permute(0, 2, 3, 1))
        return x + (y * self.last).permute(0, 3, 1, 2) + self.planes * y.permute(0, 3, 1, 2)


def test_layer_scale() -> None:
    check(randomised(LayerScale()), (2, 12, 6, 7))


class Function(nn.Module):
    """A function of the input and of some modules."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(x, *self.parts)


F = nn.functional
VIEWS: dict[str, nn.Module] = {
    "permute": Function(lambda x: x.permute(0, 2, 3, 1) * 2),
    "permute and back": Function(lambda x: (x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2)),
    "linear, channels last": Function(lambda x, a: a(x.permute(0, 2, 3, 1)), nn.Linear(12, 5)),
    "linear over columns": Function(lambda x, a: a(x), nn.Linear(7, 5)),
    "linear of a permuted, flattened image": Function(lambda x, a: a(x.permute(0, 2, 3, 1).flatten(1)), nn.Linear(12 * 42, 5)),
    "layer norm, channels last": Function(lambda x, a: a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(12)),
    "layer norm over columns": Function(lambda x, a: a(x), nn.LayerNorm(7)),
    "tokens": Function(lambda x, a, b, c: c(b(F.gelu(a(x.flatten(2).transpose(1, 2))))).mean(1), nn.Linear(12, 9), nn.LayerNorm(9), nn.Linear(9, 4)),
    "softmax over each dimension": Function(lambda x: (x.softmax(1), x.softmax(-1), x.softmax(2))),
    "along the batch": Function(lambda x: torch.cat([x, x[1:] * 2], 0)),
    "concat of flattened tensors": Function(lambda x: torch.cat([x.flatten(1), x.mean((2, 3))], 1)),
    "single channels": Function(lambda x: torch.cat([x[:, 0].unsqueeze(1) * 2 + 1, x[:, 3].unsqueeze(1)], 1)),
    "channel shuffle": Function(lambda x, a: a(x) * 2, nn.ChannelShuffle(3)),
    "nearest upsampling": Function(lambda x: (F.interpolate(x, scale_factor=2), F.interpolate(x, size=(12, 21)))),
    "pad of any dimension": Function(lambda x: (F.pad(x, (1, 2, 0, 3), value=0.5), F.pad(x.permute(0, 2, 3, 1), (1, 1)))),
    "any shape as output": Function(
        lambda x: (x.reshape(2, 3, 4, 42), x.reshape(2, 12 * 42), x.permute(1, 0, 2, 3), x.reshape(24, 42), x.reshape(2, 3, 2, 2, 42))
    ),
    "product with the transposed": Function(lambda x: x[..., :6] * x[..., :6].permute(0, 1, 3, 2)),
    "depthwise with several filters a channel": Function(lambda x, a: a(x), nn.Conv2d(12, 36, 5, padding=2, groups=12)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_every_kind(name: str) -> None:
    check(randomised(VIEWS[name]), (2, 12, 6, 7))


def test_permutations_between_pixelwise_layers_move_nothing() -> None:
    model = check(
        randomised(
            Function(lambda x, a, b, c: x + c(F.gelu(b(a(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2), nn.LayerNorm(12), nn.Linear(12, 48), nn.Linear(48, 12))
        ),
        (1, 12, 6, 7),
    )
    assert [k["kernel"] for k in model.manifest["kernels"]] == ["boundary", "layer_norm", "gather", "gather", "boundary"]


def test_what_cant_be_compiled_is_named_with_its_layer() -> None:
    with pytest.raises(UnsupportedOperator, match=r"mul of shapes \(2, 12, 6, 7\) and \(2, 1, 6, 7\)"):
        check(randomised(Function(lambda x, a: x * torch.sigmoid(a(x)), nn.Conv2d(12, 1, 1))), (2, 12, 6, 7))


class WithConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(2, 1, 6, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.token], 1)


def test_a_constant_where_none_can_be_and_an_empty_tensor_are_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="concat with the constant 'token' as operand"):
        check(WithConstant(), (2, 12, 6, 7))
    with pytest.raises(UnsupportedOperator, match="slice with an empty result"):
        check(Function(lambda x: x[:, 12:]), (2, 12, 6, 7))


def test_an_image_without_batch_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="conv2d of a tensor of 3 dimensions"):
        check(randomised(nn.Conv2d(3, 4, 3)), (3, 8, 8))


def _conv(inner: int, outer: int, kernel: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, groups=groups)


def _dense(x: Tensor, *parts: nn.Module) -> Tensor:
    found = [parts[0](x)]
    for part in parts[1:-1]:
        found.append(part(F.relu(torch.cat(found, 1))))
    return parts[-1](torch.cat(found, 1))


def _shuffle_units(x: Tensor, first: nn.Module, unit: nn.Module, last: nn.Module) -> Tensor:
    x = first(x)
    for _ in range(2):
        kept, other = x.chunk(2, 1)
        x = torch.cat([kept, F.relu(unit(other))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return last(x)


def _twice(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    y = first(x)
    return last(torch.cat([y, y], 1))


# name -> (network, copies that remain)
SHARED: dict[str, tuple[nn.Module, int]] = {
    "two parts": (Function(lambda x, a, b, c: c(torch.cat([a(x), b(x)], 1)), _conv(12, 16), _conv(12, 8, 3), _conv(24, 8, 3)), 0),
    "a part that ends within a vector": (Function(lambda x, a, b, c: c(torch.cat([a(x), b(x)], 1)), _conv(12, 15), _conv(12, 7, 3), _conv(22, 8, 3)), 2),
    "only the last part ends within a vector": (Function(lambda x, a, b, c: c(torch.cat([a(x), b(x)], 1)), _conv(12, 16), _conv(12, 7, 3), _conv(23, 8, 3)), 0),
    "with the network's input": (Function(lambda x, a, b, c: c(torch.cat([a(x), x, b(x)], 1)), _conv(12, 16), _conv(12, 8, 3), _conv(36, 8, 3)), 0),
    "one part twice": (Function(_twice, _conv(12, 16), _conv(32, 8, 3)), 1),
    "the network's output": (Function(lambda x, a, b: torch.cat([a(x), b(x)], 1), _conv(12, 16), _conv(12, 8, 3)), 0),
    "slices anywhere": (Function(lambda x, a, b: b(F.relu(a(x)[:, 3:12]) + x[:, 3:]), _conv(12, 16), _conv(9, 5, 3)), 0),
    "a slice that is pooled": (Function(lambda x, a, b: b(F.max_pool2d(a(x)[:, 5:12], 2)), _conv(12, 16), _conv(7, 5, 3)), 0),
    "halves": (Function(lambda x, a, b, c, d: d(torch.cat([b(a(x)[:, :8]), c(a(x)[:, 8:])], 1)), _conv(12, 16), _conv(8, 8, 3, 8), _conv(8, 8, 5, 8), _conv(16, 5, 3)), 0),
    "dense block": (Function(_dense, _conv(12, 16), _conv(16, 8, 3), _conv(24, 8, 3), _conv(32, 8, 3), _conv(40, 4)), 0),
    "shuffle units": (Function(_shuffle_units, _conv(12, 20), _conv(10, 10, 3), _conv(20, 4, 3)), 4),
    "concatenation of concatenations": (
        Function(lambda x, a, b, c: c(torch.cat([torch.cat([a(x), b(x)], 1), torch.cat([b(x), a(x)], 1)], 1)), _conv(12, 16), _conv(12, 8, 3), _conv(48, 8, 3)), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_concatenations_and_slices(name: str) -> None:
    network, copies = SHARED[name]
    model = check(randomised(network), (2, 12, 6, 7), tolerance=1e-4)
    assert sum(k["kernel"] == "copy" for k in model.manifest["kernels"]) == copies


class TwoConcats(nn.Module):
    """One value that two concatenations want at two places beside different neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = _conv(12, 16), _conv(16, 8, 3), _conv(16, 8, 3), _conv(24, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.d(torch.cat([y, self.b(y)], 1)) + self.d(torch.cat([y, self.c(y)], 1))


def test_a_value_that_two_concatenations_want_is_copied_once() -> None:
    model = check(randomised(TwoConcats()), (2, 12, 6, 7), tolerance=1e-4)
    assert sum(k["kernel"] == "copy" for k in model.manifest["kernels"]) == 1


def test_the_mean_of_a_rearranged_image() -> None:
    class Rearranged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x).permute(0, 2, 3, 1)).softmax(2)  # (n, h, w, c)
            return y.mean((2, 3)), y.permute(0, 3, 2, 1).softmax(2).mean((2, 3))  # type: ignore[return-value]

    check(randomised(Rearranged()), (2, 3, 6, 7))
