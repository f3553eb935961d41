"""Initial weights of new filter types: closed forms against torch.linalg.lstsq, alternation that only lowers the error, and one pass over images, kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stages.errors import UsageError
from stages.graph import trace
from stages.graph.filter_types import bottleneck
from stages.graph.retype import conv_attrs, make, replaceable, retype_
from stages.schemes import LayerScheme, Scheme
from stages.search.approximate import Moments, approximate, composed
from stages.search.candidate import Candidates
from stages.search.reconstruct import load_or_reconstruct, reconstruct, relative_error
from stages.tasks.zoo import npas_tiny

SHAPES = {"grows": (6, 10, 3), "narrows": (10, 6, 3), "wide kernel": (4, 8, 5), "few": (3, 16, 3)}


def setting(inputs: int, outputs: int, kernel: int, bias: bool = True, n: int = 4000) -> tuple[nn.Conv2d, Tensor, Moments]:
    """A convolution, patches of smooth images that it reads (n, D), and their moments."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    noise = torch.randn(n, inputs, kernel + 4, kernel + 4, generator=generator) @ torch.randn(kernel + 4, kernel + 4, generator=generator)
    patches = nn.functional.avg_pool2d(noise, 5, 1).relu().flatten(1)
    return conv, patches, Moments.of(patches)


def solved(conv: nn.Conv2d, moments: Moments, kind: str, sweeps: int = 4) -> dict[str, Tensor]:
    bias = None if conv.bias is None else conv.bias.detach()
    return approximate(conv.weight, bias, moments, conv_attrs(conv), kind, sweeps)


def error(conv: nn.Conv2d, tensors: dict[str, Tensor], patches: Tensor) -> float:
    return relative_error(conv.weight.detach(), None if conv.bias is None else conv.bias.detach(), tensors, patches)


@pytest.mark.parametrize("kind", ["1x1", "3x3"])
@pytest.mark.parametrize("bias", [True, False])
def test_closed_forms_are_the_least_squares_solution(kind: str, bias: bool) -> None:
    conv, patches, moments = setting(4, 8, 5, bias)
    found, size = solved(conv, moments, kind), int(kind[0])
    wanted = patches.double() @ conv.weight.detach().double().flatten(1).T + (conv.bias.detach().double() if bias else 0)
    low, high = (5 - size) // 2, (5 + size) // 2
    inner = patches.double().view(-1, 4, 5, 5)[:, :, low:high, low:high].flatten(1)
    best = torch.linalg.lstsq(torch.cat([inner, torch.ones(len(inner), 1)], 1), wanted).solution  # (D' + 1, O)
    kernel, shift = found.values()
    torch.testing.assert_close(kernel.flatten(1).double(), best[:-1].T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shift.double(), best[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_type_computes_what_its_one_kernel_does_and_comes_closer_than_random_weights(shape: tuple[int, int, int]) -> None:
    conv, patches, moments = setting(*shape)
    x = torch.randn(2, shape[0], 9, 9)
    for kind in ("1x1", "3x3dw-1x1", "1x1-3x3dw-1x1"):
        module, found = make(conv, kind), solved(conv, moments, kind)
        drawn = error(conv, module.state_dict(), patches)
        module.load_state_dict(found)
        kernel = composed(found, conv.weight.shape).float()
        last = next(t for name, t in found.items() if name.endswith("bias"))
        torch.testing.assert_close(module(x), nn.functional.conv2d(x, kernel, last, padding=shape[2] // 2), rtol=1e-3, atol=1e-3)
        assert error(conv, found, patches) < min(1.0, drawn)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("kind", ["3x3dw-1x1", "1x1-3x3dw-1x1"])
def test_each_sweep_lowers_the_error(shape: tuple[int, int, int], kind: str) -> None:
    conv, patches, moments = setting(*shape)
    errors = [error(conv, solved(conv, moments, kind, sweeps), patches) for sweeps in (0, 1, 4, 12)]
    assert all(after <= before * (1 + 1e-4) + 1e-9 for before, after in zip(errors, errors[1:], strict=False)) and errors[-1] < errors[0]


def test_alternation_ends_where_gradients_vanish() -> None:
    conv, patches, moments = setting(6, 10, 3)
    module = make(conv, "3x3dw-1x1")
    module.load_state_dict(solved(conv, moments, "3x3dw-1x1", 200))
    images = patches.view(-1, 6, 3, 3)
    module.dw.padding = (0, 0)
    wanted = nn.functional.conv2d(images, conv.weight, conv.bias).detach()
    loss = (module(images) - wanted).square().mean()
    loss.backward()
    assert all(p.grad.abs().max() < 2e-3 * float(wanted.square().mean()) for p in module.parameters())


def test_a_separable_kernel_is_found_exactly() -> None:
    conv, patches, moments = setting(6, 10, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(10, 6, 1, 1) * torch.randn(1, 6, 3, 3))
    assert error(conv, solved(conv, moments, "3x3dw-1x1"), patches) < 1e-5
    assert error(conv, solved(conv, moments, "1x1-3x3dw-1x1"), patches) < 1e-5
    assert bottleneck(conv_attrs(conv)) == 8
    with torch.no_grad():
        conv.weight.zero_()[:, :, 1, 1] = torch.randn(10, 6)
    assert error(conv, solved(conv, moments, "1x1"), patches) < 1e-9


def test_few_and_constant_samples_are_no_trouble() -> None:
    conv, patches, _ = setting(6, 10, 3)
    for seen in (patches[:5], torch.zeros(20, 54), torch.ones(1, 54)):
        for kind in ("1x1", "3x3dw-1x1", "1x1-3x3dw-1x1"):
            assert all(torch.isfinite(t).all() for t in solved(conv, Moments.of(seen).shrunk(len(seen)), kind).values())
    few = patches[:30]
    plain, shrunk = (error(conv, solved(conv, m, "3x3dw-1x1"), patches) for m in (Moments.of(few), Moments.of(few).shrunk(30)))
    assert shrunk < plain  # what 30 samples of 54 numbers say is taken with care


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return npas_tiny().train()


def images(count: int = 48) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(nn.functional.avg_pool2d(torch.randn(count, 3, 34, 34, generator=generator), 3, 1).split(16))


def test_one_pass_serves_all_layers_and_types_and_touches_nothing(network: nn.Module, tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 32, 32)
    types = replaceable(network, trace(network, x))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    passes = 0

    def counted() -> list[Tensor]:
        nonlocal passes
        passes += 1
        return images()

    found = load_or_reconstruct(tmp_path / "types.pt", network, types, counted(), 48, 2)
    again = load_or_reconstruct(tmp_path / "types.pt", network, types, iter(()), 48, 2)  # from the file: no image is looked at
    fresh = reconstruct(network, types, counted(), 48, 2)
    assert passes == 2 and found.errors == again.errors == fresh.errors
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items()) and network.training
    assert {(row["layer"], row["filter_type"]) for row in found.rows()} == {(path, kind) for path, kinds in types.items() for kind in kinds[1:]}
    for path, kinds in types.items():
        for kind in kinds[1:]:
            assert all(torch.equal(t, again.tensors[path][kind][name]) and torch.equal(t, fresh.tensors[path][kind][name]) for name, t in found.tensors[path][kind].items())
            assert kind == "skip" or found.errors[path][kind] < 1


def test_the_recorded_error_is_that_of_the_feature_map(network: nn.Module) -> None:
    """Against hooks on the layer itself, over all places of the held-out images."""
    x, path, kind = torch.cat(images()), "stem.0", "3x3dw-1x1"
    found = reconstruct(network, {path: (kind,)}, images(), 48)
    held = x[3::4]
    conv, other = network.get_submodule(path), make(network.get_submodule(path), kind)
    other.load_state_dict(found.tensors[path][kind])
    with torch.no_grad():
        wanted, got = conv(held), other(held)
    expected = (got - wanted).square().sum() / (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    assert found.errors[path][kind] == pytest.approx(float(expected), rel=0.15)


def test_candidates_begin_with_the_reconstructed_weights(network: nn.Module) -> None:
    x = torch.zeros(1, 3, 32, 32)
    graph = trace(network, x)
    found = reconstruct(network, {"stem.0": ("1x1", "3x3dw-1x1")}, images(), 48, 2)
    built = Candidates(network, graph, found).build(Scheme({"stem.0": LayerScheme("3x3dw-1x1")}))
    assert torch.equal(built.module.get_submodule("stem.0.dw").weight, found.tensors["stem.0"]["3x3dw-1x1"]["dw.weight"])
    plain = npas_tiny()
    plain.load_state_dict(network.state_dict())
    retype_(plain, graph, {"stem.0": "3x3dw-1x1"})
    probe = torch.cat(images())
    with torch.no_grad():
        wanted, near, far = network.eval()(probe), built.module(probe), plain.eval()(probe)
    network.train()
    assert (near - wanted).square().sum() < (far - wanted).square().sum()


def test_too_few_images_are_refused(network: nn.Module) -> None:
    with pytest.raises(UsageError, match="3 calibration images"):
        reconstruct(network, {"stem.0": ("1x1",)}, images(3), 3)
