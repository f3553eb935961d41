"""What stays makes up for what goes: against torch.linalg.lstsq on the very patches, through biases, batch norms, removed channels and reordered ones."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.graph import trace
from stages.schemes import LayerScheme, Scheme, apply_masks, make_masks, uniform_scheme
from stages.schemes import compensate as module_under_test
from stages.schemes.compensate import Reads, compensate_, dead_columns, fit_rows, learn_reads
from stages.schemes.grouping import regroup_
from stages.schemes.patches import PatchDrawer
from stages.tasks.zoo import npas_tiny

IMAGES = 32


def smooth(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Images whose neighbouring pixels and channels are alike."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    noise = noise + 0.7 * noise.roll(1, 1) + 0.5
    return nn.functional.avg_pool2d(noise, 3, 1, 1)


def images(channels: int = 3, size: int = 16) -> list[Tensor]:
    return [smooth((IMAGES // 2, channels, size, size), seed) for seed in (0, 1)]


def drawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and batch norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1 if p.ndim == 1 else 0))
    return network.eval()


def learnt(network: nn.Module, batches: list[Tensor]) -> dict[str, Reads]:
    return learn_reads(network, trace(network, batches[0][:1]), batches, sum(map(len, batches)))


@pytest.mark.parametrize("wide", [4, 2048], ids=["patches kept", "covariance kept"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_filter_is_its_least_squares_solution_within_the_mask(wide: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "WIDE", wide)
    monkeypatch.setattr(module_under_test, "shrinkage", lambda size, n, trace, square: 0.0)
    network, batches = drawn(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=bias))), images(4, 12)
    scheme = Scheme({"0": LayerScheme("keep", "block-punched", 3.0, 2)})
    masks, reads = make_masks(network, scheme), learnt(network, batches)
    per_image = -(-(module_under_test.PATCHES if wide > 36 else wide) // IMAGES)
    draw, conv = PatchDrawer(0, per_image), network[0]
    patches = torch.cat([draw(conv, batch).flatten(0, 1) for batch in batches]).double()
    wanted = patches @ conv.weight.detach().double().flatten(1).T
    before = copy.deepcopy(conv)
    compensate_(network, trace(network, batches[0][:1]), scheme, masks, reads)
    for row in range(6):
        keep = masks["0.weight"][row].flatten()
        seen = torch.cat([patches[:, keep], torch.ones(len(patches), 1)], 1) if bias else patches[:, keep]
        best = seen @ torch.linalg.lstsq(seen, wanted[:, row : row + 1], driver="gelsd").solution
        found = patches[:, keep] @ conv.weight.detach().double()[row].flatten()[keep]
        if bias:
            found = found + float((conv.bias - before.bias)[row].detach())
        assert float((found - wanted[:, row]).square().mean()) <= float((best[:, 0] - wanted[:, row]).square().mean()) * 1.02 + 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 24), st.integers(2, 60), st.booleans(), st.integers(0, 99))
def test_fitting_never_ends_farther_away_than_the_mask_alone(filters: int, size: int, n: int, centred: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(n, size, generator=generator) @ torch.randn(size, size, generator=generator) + 1
    mean = patches.mean(0)
    root = (patches - mean) / n**0.5
    reads = Reads(mean, root.T @ root if n >= size else root, 0.05, n >= size)
    weight, mask = torch.randn(filters, size, generator=generator), torch.rand(filters, size, generator=generator) < 0.5

    def away(rows: Tensor) -> Tensor:
        lost = weight - rows
        return (reads.times(lost) * lost).sum(1) + (0 if centred else (lost @ mean).square())

    fitted = fit_rows(weight, mask, reads, centred)
    assert not fitted[~mask].any() and torch.isfinite(fitted).all()
    assert (away(fitted) <= away(weight * mask) * 1.001 + 1e-5).all()


@pytest.mark.parametrize("kind", ["block-punched", "pattern", "filter"])
def test_a_pruned_network_comes_closer_to_its_outputs_on_other_images(kind: str) -> None:
    network = drawn(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)))
    graph = trace(network, images()[0][:1])
    chosen = uniform_scheme(graph, kind, 3.0, 4)
    scheme = Scheme({path: layer for path, layer in chosen.layers.items() if path != "0" or kind == "filter"}, chosen.coupled)
    masks, reads, fresh = make_masks(network, scheme), learnt(network, images()), smooth((8, 3, 16, 16), 7)
    plain, fitted = copy.deepcopy(network), copy.deepcopy(network)
    compensate_(fitted, graph, scheme, masks, reads)
    for pruned in (plain, fitted):
        apply_masks(pruned, masks)
    with torch.no_grad():
        lost = [float((pruned(fresh) - network(fresh)).square().mean()) for pruned in (plain, fitted)]
    assert lost[1] < 0.8 * lost[0]


def test_layers_that_lose_nothing_keep_their_weights_bit_by_bit() -> None:
    network = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    before = copy.deepcopy(network.state_dict())
    scheme = Scheme({"2": LayerScheme("keep", "block-punched", 2.0, 4)})
    compensate_(network, trace(network, images()[0][:1]), scheme, make_masks(network, scheme), learnt(network, images()))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"2.weight", "2.bias"}


def test_the_reader_of_removed_channels_does_without_them() -> None:
    network = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5)))
    graph = trace(network, images()[0][:1])
    scheme = uniform_scheme(graph, "filter", 2.0)
    masks = make_masks(network, scheme)
    dead = dead_columns(graph, scheme, masks)["3.weight"].reshape(8, -1)
    assert (torch.from_numpy(dead).all(1) == ~masks["0.weight"].flatten(1).any(1)).all() and dead.sum() == 4 * 14 * 14


class ChannelsLast(nn.Module):
    """As ConvNeXt has it: linear layers along the last axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.narrow, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 24), nn.Linear(24, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return self.head(made + self.narrow(self.wide(made.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["block-punched", "filter"])
def test_linear_layers_along_another_axis(kind: str) -> None:
    network = drawn(ChannelsLast())
    graph = trace(network, images()[0][:1])
    scheme = uniform_scheme(graph, kind, 2.0, 4)
    masks, fresh = make_masks(network, scheme), smooth((4, 3, 16, 16), 5)
    plain, fitted = copy.deepcopy(network), copy.deepcopy(network)
    compensate_(fitted, graph, scheme, masks, learnt(network, images()))
    for pruned in (plain, fitted):
        apply_masks(pruned, masks)
    with torch.no_grad():
        lost = [float((pruned(fresh) - network(fresh)).square().mean()) for pruned in (plain, fitted)]
    assert lost[1] < lost[0] or (kind == "filter" and lost == [0, 0])


def test_reordered_channels_are_found_again() -> None:
    network = npas_tiny().eval()
    batches = [smooth((8, 3, 16, 16), seed) for seed in (0, 1)]
    with torch.no_grad():
        network.train()
        for batch in batches * 4:
            network(batch)
        network.eval()
    graph = trace(network, batches[0][:1])
    scheme = uniform_scheme(graph, "block-punched", 3.0, 4)
    reads, moved = learnt(network, batches), copy.deepcopy(network)
    orders = regroup_(moved, graph, scheme)
    assert orders
    masks, again = make_masks(moved, scheme), copy.deepcopy(moved)
    compensate_(moved, graph, scheme, masks, reads, orders)
    compensate_(again, graph, scheme, masks, learnt(again, batches))
    for name, tensor in moved.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], rtol=2e-3, atol=2e-4)
