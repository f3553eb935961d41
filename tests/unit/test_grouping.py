"""Grouping: any order of an orbit's channels is the same network; the order that is found keeps more energy, by exhaustive search nearly the most; candidates carry it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.graph import Graph, couplings, trace
from stages.graph.orders import orbits
from stages.schemes import LayerScheme, Scheme, legal_schemes, make_masks, prune_, uniform_scheme
from stages.schemes.grouping import kept_energy, regroup_
from stages.search.candidate import Candidates
from stages.tasks.vision import torchvision
from stages.tasks.zoo import SqueezeExcite, npas_tiny


class Net(nn.Module):
    """``forward`` is given; the modules are those of ``parts``."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, all its numbers different."""
    rng = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.data = torch.randn(part.weight.shape, generator=rng) * torch.rand(part.weight.shape, generator=rng) ** 2
            if part.bias is not None:
                part.bias.data = torch.rand(part.bias.shape, generator=rng)
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data = torch.rand(tensor.shape, generator=rng) + 0.5
    return module.double().eval()


def conv(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def last(m: nn.Module, x: Tensor) -> Tensor:
    return m.get_submodule("c")(x.mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int | None]] = {  # and how many orbits it has, where that is seen at once
    "chain": (lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.Flatten(), nn.Linear(4 * 25, 3)), 2),
    "batch norm behind a flattening": (lambda: nn.Sequential(conv(3, 4), nn.Flatten(), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 5), nn.Linear(5, 2)), 2),
    "a flattening, sliced": (lambda: Net(lambda m, x: m.b(m.a(x).flatten(1)[:, ::3]), a=conv(3, 4), b=nn.Linear(34, 2)), 0),
    "residual": (lambda: Net(lambda m, x: last(m, (y := m.a(x)) + m.b(y.relu()) + m.d(y)), a=conv(3, 6), b=conv(6, 6), d=conv(6, 6, 1), c=nn.Linear(6, 2)), 1),
    "concatenation": (lambda: Net(lambda m, x: last(m, m.n(torch.cat([m.a(x), m.b(x)], 1)).relu()), a=conv(3, 4), b=conv(3, 6), n=nn.BatchNorm2d(10), c=nn.Linear(10, 2)), 2),
    "twice in one tensor": (lambda: Net(lambda m, x: last(m, torch.cat([y := m.a(x), y], 1)), a=conv(3, 4), c=nn.Linear(8, 2)), 0),
    "halves summed": (lambda: Net(lambda m, x: last(m, (y := m.a(x))[:, :1] + y[:, 1:]), a=conv(3, 2), c=nn.Linear(1, 2)), 0),
    "depthwise and gate": (lambda: Net(lambda m, x: last(m, m.g(m.d(m.a(x)).relu())), a=conv(3, 8), d=conv(8, 8, groups=8), g=SqueezeExcite(8, 4), c=nn.Linear(8, 2)), 2),
    "grouped": (lambda: Net(lambda m, x: last(m, m.d(m.a(x).relu())), a=conv(3, 8), d=conv(8, 12, groups=2), c=nn.Linear(12, 2)), 4),
    "shuffled": (lambda: Net(lambda m, x: last(m, m.d(shuffled(m.a(x)))), a=conv(3, 8), d=conv(8, 4), c=nn.Linear(4, 2)), 2),
    "called twice": (lambda: Net(lambda m, x: last(m, m.b(m.b(m.a(x)).relu())), a=conv(3, 6), b=conv(6, 6), c=nn.Linear(6, 2)), 1),
    "softmax of channels": (lambda: Net(lambda m, x: last(m, torch.softmax(m.a(x), 1)), a=conv(3, 4), c=nn.Linear(4, 2)), 0),
    "npas_tiny": (npas_tiny, None),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=3), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_of_an_orbit_is_the_same_network(name: str) -> None:
    make, count = NETWORKS[name]
    module, x = lively(make()), torch.randn(2, 3, *[32 if count is None else 5] * 2, dtype=torch.float64)
    expected, found, rng = module(x), orbits(trace(module, x)), np.random.default_rng(0)
    assert len(found) > 9 if count is None else len(found) == count
    before = copy.deepcopy(module.state_dict())
    for orbit in found:
        orbit.permute(module.state_dict(), np.roll(np.arange(len(orbit)), 1) if len(orbit) < 4 else rng.permutation(len(orbit)))
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)
    assert all(not torch.equal(before[tensor], module.state_dict()[tensor]) for orbit in found for tensor in orbit.rows)


@st.composite
def pruned_networks(draw: st.DrawFn) -> tuple[nn.Module, Graph, Scheme, Tensor]:
    """A residual network of a few convolutions, and a scheme with a legal choice for each layer."""
    wide, inner = draw(st.integers(2, 14)), draw(st.integers(2, 14))
    size = draw(st.sampled_from((1, 3)))
    module = lively(Net(
        lambda m, x: m.c((m.d((y := m.n(m.a(x)).relu())) + m.w(m.e(m.b(y)).relu())).flatten(1)),
        a=conv(3, wide), n=nn.BatchNorm2d(wide), b=conv(wide, inner, size), e=conv(inner, inner, 3, inner), w=conv(inner, wide), d=conv(wide, wide, 1), c=nn.Linear(wide * 9, 4),
    ), draw(st.integers(0, 99)))  # fmt: skip
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    graph = trace(module, x)
    layers = {
        layer.module: draw(st.sampled_from(legal_schemes(layer, graph, ("none", "filter", "block-punched", "pattern"), (2.0, 3.0, 4.5), (2, 3, 4, 8), (1, 2, 4))))
        for layer in graph.prunable
    }
    return module, graph, Scheme(layers, couplings(graph)), x


@settings(deadline=None, max_examples=25)
@given(pruned_networks())
def test_regrouping_changes_nothing_but_the_order_and_keeps_no_less(drawn: tuple[nn.Module, Graph, Scheme, Tensor]) -> None:
    module, graph, scheme, x = drawn
    again, expected, before = copy.deepcopy(module), module(x), kept_energy(module.state_dict(), scheme)
    orders = regroup_(module, graph, scheme)
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)
    after = kept_energy(module.state_dict(), scheme)
    assert after > before if orders else after == before
    assert all(sorted(order) == list(range(len(order))) for order in orders.values())
    assert regroup_(again, graph, scheme) == orders
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])


def test_layers_that_make_the_same_channels_get_one_order() -> None:
    module, x = lively(NETWORKS["residual"][0]()), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    before, graph = copy.deepcopy(module.state_dict()), trace(module, x)
    orders = regroup_(module, graph, Scheme({"a": LayerScheme("keep", "block-punched", 3.0, 2), "b": LayerScheme("keep", "block-punched", 2.0, 3), "d": LayerScheme("keep", "block-punched", 2.0, 4)}))
    (order,), after = (list(o) for o in orders.values()), module.state_dict()
    assert list(orders) == ["a"]
    for path in "abd":
        assert torch.equal(after[f"{path}.bias"], before[f"{path}.bias"][order])
    assert torch.equal(after["b.weight"], before["b.weight"][order][:, order]) and torch.equal(after["c.weight"], before["c.weight"][:, order])


def layer_of(weight: Tensor) -> tuple[nn.Module, Graph]:
    """A network whose first layer has this weight (O, I)."""
    module = nn.Sequential(nn.Conv2d(weight.shape[1], len(weight), 1, bias=False), nn.ReLU(), nn.Conv2d(len(weight), 2, 1)).eval()
    module[0].weight.data = weight[:, :, None, None].clone()
    return module, trace(module, torch.zeros(1, weight.shape[1], 2, 2))


def test_filters_of_the_same_kind_share_a_block() -> None:
    """Filters 0, 2, 4 need inputs 0 and 1; filters 1, 3, 5 need inputs 2 and 3: in blocks of 3 that keep half, only one grouping keeps all."""
    weight = torch.zeros(6, 4)
    weight[::2, :2], weight[1::2, 2:] = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    module, graph = layer_of(weight)
    scheme = Scheme({"0": LayerScheme("keep", "block-punched", 2.0, 3)})
    assert kept_energy(module.state_dict(), scheme) == pytest.approx(0.8)
    (order,) = regroup_(module, graph, scheme).values()
    assert {frozenset(order[:3]), frozenset(order[3:])} == {frozenset((0, 2, 4)), frozenset((1, 3, 5))}
    assert kept_energy(module.state_dict(), scheme) == 1
    assert regroup_(module, graph, scheme) == {}  # it can't be better


@pytest.mark.parametrize("block", (2, 3, 4))
def test_what_is_found_is_near_the_best_of_all_groupings(block: int) -> None:
    scheme, gained, possible = Scheme({"0": LayerScheme("keep", "block-punched", 3.0, block)}), 0.0, 0.0
    for seed in range(10):
        weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(seed))
        module, graph = layer_of(weight)
        every = {tuple(frozenset(order[k : k + block]) for k in range(0, 6, block)): list(order) for order in permutations(range(6))}
        begin, best = kept_energy(module.state_dict(), scheme), max(kept_energy({"0.weight": weight[order][:, :, None, None]}, scheme) for order in every.values())
        regroup_(module, graph, scheme)
        found = kept_energy(module.state_dict(), scheme)
        assert begin <= found <= best + 1e-9
        gained, possible = gained + found - begin, possible + best - begin
    assert gained > 0.85 * possible


def test_an_order_that_another_layer_loses_by_is_dropped() -> None:
    """The second layer prunes input channels in pairs: the order that is best for the first layer's filters would part them."""
    weight = torch.zeros(4, 4)
    weight[[0, 2], :2], weight[[1, 3], 2:] = 0.1, 0.1
    module, graph = layer_of(weight)
    module[2].weight.data = torch.tensor([[3.0, 3, 1, 1]] * 2)[:, :, None, None]
    first, second = LayerScheme("keep", "block-punched", 2.0, 2), LayerScheme("keep", "block-punched", 2.0, 2, 2)
    assert regroup_(module, graph, Scheme({"0": first, "2": second})) == {}
    assert regroup_(module, graph, Scheme({"0": first}))


def test_filters_that_are_removed_whole_stay_where_they_are() -> None:
    module = lively(NETWORKS["chain"][0]())
    graph = trace(module, torch.zeros(1, 3, 5, 5, dtype=torch.float64))
    assert regroup_(module, graph, uniform_scheme(graph, "filter", 2.0)) == {}


@pytest.mark.parametrize("kinds", ({}, {"blocks.3.layers.0.0": "3x3dw-1x1"}), ids=("as it is", "replaced"))
def test_candidates_come_regrouped_and_prune_to_their_scheme(kinds: dict[str, str]) -> None:
    torch.manual_seed(0)
    network, x = npas_tiny().eval(), torch.randn(2, 3, 32, 32)
    graph = trace(network, x)
    layers = {layer.module: LayerScheme(kinds.get(layer.module, "keep"), "block-punched", 3.0, 4) for layer in graph.prunable if layer.op == "conv2d"}
    assert set(kinds) <= set(layers)
    plain, built = (Candidates(network, graph, grouping=grouping).build(Scheme(layers)) for grouping in (False, True))
    if not kinds:  # the new filter types have random weights here, other ones each time
        torch.testing.assert_close(built.module(x), network(x), rtol=1e-4, atol=1e-5)
        assert kept_energy(built.module.state_dict(), built.scheme) > kept_energy(plain.module.state_dict(), plain.scheme)
    assert built.orders and not plain.orders
    masks = prune_(built.module, built.scheme)
    assert masks.keys() == make_masks(plain.module, plain.scheme).keys()
    torch.testing.assert_close(network(x), npas_tiny_again(network)(x))


def npas_tiny_again(network: nn.Module) -> nn.Module:
    """What was searched is as it was: Candidates work on copies."""
    torch.manual_seed(0)
    fresh = npas_tiny().eval()
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), network.state_dict().values(), strict=True))
    return fresh
