"""Filter types: what may become what, graph edits against a new trace, trained and saved modules, and schemes that follow a replaced layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.compiler import compile_model
from stages.config import SearchScheme
from stages.errors import ArtifactError, UsageError
from stages.graph import FILTER_TYPES, Graph, couplings, legal_types, trace
from stages.graph.filter_types import WIDTH_STEP, retype_graph
from stages.graph.retype import replaceable, retype_, retype_modules_
from stages.schemes import DENSE, LayerScheme, Scheme, check_zeros, prune_, resolve
from stages.search.candidate import Candidates, searched_types
from stages.tasks.vision import torchvision
from stages.tasks.zoo import npas_tiny

NEW = FILTER_TYPES[1:]
SEPARABLE = ("3x3dw-1x1", "1x1-3x3dw-1x1")


class Chain(nn.Sequential):
    """One convolution between two others, so that nothing stands at an end of the network."""

    def __init__(self, conv: nn.Module, inputs: int, outputs: int, after: nn.Module | None = None):
        super().__init__(nn.Conv2d(3, inputs, 1), nn.ReLU(), conv, after or nn.BatchNorm2d(outputs), nn.Conv2d(outputs, 4, 1))


def same_as_retraced(module: nn.Module, types: Mapping[str, str], x: Tensor) -> tuple[nn.Module, Graph]:
    """The retyped copy and its graph, which must be what tracing gives."""
    made = copy.deepcopy(module)
    graph = retype_(made, trace(module, x), types)
    again = trace(made, x)
    assert graph.layers == again.layers and graph.outputs == again.outputs and graph.macs == again.macs
    return made, graph


def kinds_of(conv: nn.Module, inputs: int = 64, outputs: int = 64, after: nn.Module | None = None, size: int = 9) -> tuple[str, ...]:
    network = Chain(conv, inputs, outputs, after).eval()
    graph = trace(network, torch.zeros(1, 3, size, size))
    return replaceable(network, graph).get("2", ("keep",))


@pytest.mark.parametrize(("conv", "kinds"), [
    (nn.Conv2d(64, 64, 3, padding=1), ("1x1", *SEPARABLE, "skip")),
    (nn.Conv2d(64, 64, 3, stride=2, padding=1), ("1x1", *SEPARABLE)),
    (nn.Conv2d(64, 64, 3, padding=2, dilation=2), ("1x1", *SEPARABLE, "skip")),
    (nn.Conv2d(64, 64, 3), SEPARABLE),  # a 1x1 would see more places than an unpadded 3x3
    (nn.Conv2d(64, 64, 3, padding=2), ("1x1", *SEPARABLE)),
    (nn.Conv2d(64, 64, 5, padding=2), ("1x1", "3x3", *SEPARABLE, "skip")),
    (nn.Conv2d(64, 64, 5, padding="same"), ("1x1", "3x3", *SEPARABLE, "skip")),
    (nn.Conv2d(64, 64, 7, stride=2, padding=3, bias=False), ("1x1", "3x3", *SEPARABLE)),
    (nn.Conv2d(64, 64, (1, 7), padding=(0, 3)), ("1x1", "skip")),
    (nn.Conv2d(64, 64, (3, 5), padding=(1, 2)), ("1x1", "3x3", *SEPARABLE, "skip")),
    (nn.Conv2d(64, 64, 4, padding=1), ()),  # no smaller kernel has the centre of an even one
    (nn.Conv2d(64, 64, 2, dilation=2, padding=1), ("skip",)),
    (nn.Conv2d(64, 64, 1), ("skip",)),
    (nn.Conv2d(64, 64, 1, stride=2), ()),
    (nn.Conv2d(64, 64, 3, padding=1, groups=64), ()),
    (nn.Conv2d(64, 64, 5, padding=2, groups=2), ()),
    (nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), ()),
])  # fmt: skip
def test_what_a_convolution_may_become(conv: nn.Conv2d, kinds: tuple[str, ...]) -> None:
    assert kinds_of(conv) == ("keep", *kinds)


def test_what_would_cost_more_is_no_choice() -> None:
    assert kinds_of(nn.Conv2d(3, 4, 3, padding=1), 3, 4) == ("keep", "1x1", "3x3dw-1x1")  # the bottleneck has at least WIDTH_STEP channels
    assert kinds_of(nn.Conv2d(2, 1, 3, padding=1), 2, 1) == ("keep", "1x1")


def test_what_shares_weights_or_is_called_otherwise_keeps_its_type() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice, self.past, self.one, self.other, self.plain = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8, 8, 8, 8))
            self.other.weight = self.one.weight
            self.alias = self.plain2 = nn.Conv2d(8, 8, 3, padding=1)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.twice(self.first(x)))
            x = nn.functional.conv2d(x, self.past.weight, self.past.bias, padding=1)
            x = self.plain2(self.plain(self.other(self.one(x))))
            return self.fc(x.mean((2, 3)))

    network, x = Odd().eval(), torch.zeros(1, 3, 8, 8)
    assert set(replaceable(network, trace(network, x))) == {"first", "plain"}


def test_a_layer_whose_input_would_be_overwritten_or_that_stands_at_an_end_is_not_skipped() -> None:
    assert "skip" in kinds_of(nn.Conv2d(64, 64, 3, padding=1), after=nn.ReLU())
    assert "skip" not in kinds_of(nn.Conv2d(64, 64, 3, padding=1), after=nn.ReLU(inplace=True))
    ends = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)).eval()
    assert replaceable(ends, trace(ends, torch.zeros(1, 3, 4, 4))) == {}


@settings(max_examples=12, deadline=None)
@given(
    inputs=st.integers(1, 20), outputs=st.integers(1, 20), kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    more=st.integers(-1, 1), high=st.integers(9, 16), wide=st.integers(9, 16), bias=st.booleans(), batch=st.integers(1, 2),
)  # fmt: skip
def test_every_legal_type_keeps_the_shape_costs_less_and_is_what_a_new_trace_sees(inputs, outputs, kernel, stride, dilation, more, high, wide, bias, batch) -> None:
    padding = max(0, dilation * (kernel - 1) // 2 + more)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)
    if min(high, wide) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    network, x = Chain(conv, inputs, outputs).eval(), torch.randn(batch, 3, high, wide)
    graph = trace(network, x)
    for kind in legal_types(graph["2"], graph)[1:]:
        made, edited = same_as_retraced(network, {"2": kind}, x)
        assert edited.macs < graph.macs and made(x).shape == network(x).shape
        assert edited["3"].shape == graph["3"].shape and type(made.get_submodule("2")) is nn.Sequential


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "npas_tiny": (npas_tiny, 32),
    "resnet18": (torchvision.models.resnet18, 40),
    "vgg11_bn": (partial(torchvision.models.vgg11_bn, num_classes=10), 32),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 33),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 32),
    "squeezenet": (torchvision.models.squeezenet1_1, 48),  # concatenations
    "alexnet": (torchvision.models.alexnet, 67),  # 11x11 with stride 4, 5x5
    "googlenet": (partial(torchvision.models.googlenet, aux_logits=False, init_weights=False), 48),  # 7x7 with stride 2
}


QUICK = ("npas_tiny", "resnet18", "alexnet")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in NETWORKS])
def test_graphs_of_retyped_networks_are_what_a_new_trace_sees(name: str) -> None:
    make, size = NETWORKS[name]
    network = make()
    x = torch.randn(1, 3, size, size)
    graph = trace(network.eval(), x)
    types = replaceable(network, graph)
    assert types
    mixed = {path: kinds[1 + number % (len(kinds) - 1)] for number, (path, kinds) in enumerate(types.items())}
    made, edited = same_as_retraced(network, mixed, x)
    assert edited.macs < graph.macs and torch.isfinite(made(x)).all()


@pytest.mark.parametrize("kind", NEW)
def test_a_retyped_and_pruned_network_computes_compiled_what_pytorch_computes(kind: str) -> None:
    x = torch.randn(1, 3, 20, 20)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 5, 1, 2, bias=False), nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 24, 1),
    ).eval()  # fmt: skip
    graph = trace(network, x)
    scheme = Scheme({"3": LayerScheme(kind, "none" if kind == "skip" else "block-punched", 2.0, 8), "6": LayerScheme("keep", "block-punched", 2.0, 8)}, couplings(graph))
    built = Candidates(network, graph).build(scheme)
    masks = prune_(built.module, built.scheme)
    check_zeros(built.module, built.scheme, masks)
    assert ("3.dw.weight" in masks) is False and (f"3.{'conv' if kind == '3x3' else 'pw'}.weight" in masks) is (kind != "skip")
    model = compile_model(built.module, x, built.scheme, graph=built.graph)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(model(x.numpy())[0]), built.module(x), rtol=1e-3, atol=1e-4)


def test_a_replacement_trains_copies_and_loads_like_any_module() -> None:
    network, x = npas_tiny().eval(), torch.randn(2, 3, 32, 32)
    types = {"stem.0": "1x1-3x3dw-1x1", "blocks.3.layers.0.0": "3x3dw-1x1"}
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    state = torch.get_rng_state()
    for made in (first, second):
        retype_modules_(made, types)
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers are used up
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    first.train()(x).sum().backward()
    assert first.get_submodule("stem.0.dw").weight.grad.abs().sum() > 0
    copied = copy.deepcopy(first).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(copied(x), second.eval()(x))
    assert first.get_submodule("stem.0.mix").out_channels == WIDTH_STEP


def test_illegal_and_unknown_layers_are_named() -> None:
    network = npas_tiny().eval()
    graph = trace(network, torch.zeros(1, 3, 32, 32))
    before = copy.deepcopy(network.state_dict())
    for path, kind in (("stem.0", "skip"), ("head.0", "1x1"), ("nobody", "1x1"), ("classifier", "skip"), ("stem.0", "4x4")):
        with pytest.raises(UsageError, match=f"'{path}' can't become {kind}"):
            retype_(network, graph, {"stem.0": "1x1", path: kind})
    assert network.state_dict().keys() == before.keys()
    with pytest.raises(UsageError, match="no convolution 'nobody'"):
        retype_modules_(network, {"nobody": "1x1"})
    assert retype_graph(graph, {"stem.0": "keep"}) == graph
    with pytest.raises(ArtifactError, match="impossible"):
        LayerScheme.from_json(LayerScheme().to_json() | {"filter_type": "4x4"})


def test_labels_and_json_carry_the_type() -> None:
    labels = {LayerScheme("1x1", "block-punched", 3.0, 8): "1x1|block-punched/8 3x", LayerScheme("3x3dw-1x1"): "3x3dw-1x1", LayerScheme("skip"): "skip", LayerScheme(): "none"}
    for scheme, label in labels.items():
        assert scheme.label == label and LayerScheme.from_json(scheme.to_json()) == scheme


def test_a_scheme_follows_its_replaced_layers() -> None:
    network = npas_tiny().eval()
    graph = trace(network, torch.zeros(1, 3, 32, 32))
    punched, filters = LayerScheme("keep", "block-punched", 2.0, 8), LayerScheme("keep", "filter", 2.0)
    pattern = LayerScheme("1x1-3x3dw-1x1", "pattern", 4.5, 8)
    scheme = Scheme({"stem.0": LayerScheme("3x3dw-1x1", "block-punched", 3.0, 8), "blocks.0.layers.0.0": pattern, "head.0": filters, "classifier": DENSE}, couplings(graph))
    built = Candidates(network, graph).build(scheme)
    assert built.scheme["stem.0.pw"] == LayerScheme("keep", "block-punched", 3.0, 8) and built.scheme["head.0"] == filters
    assert built.scheme["blocks.0.layers.0.0.mix"].pruning == "none"  # patterns prune no 1x1
    assert "stem.0" not in built.scheme.layers and not built.scheme.filter_types
    assert built.scheme.coupled == couplings(trace(built.module, torch.zeros(1, 3, 32, 32)))
    prune_(built.module, built.scheme)
    plain = Scheme({"stem.0": punched}, couplings(graph))
    assert resolve(plain, graph) is plain
    with pytest.raises(UsageError, match="nobody"):
        prune_(built.module, resolve(Scheme({"stem.0": LayerScheme("1x1"), "nobody": punched}), built.graph))


def test_filters_of_a_layer_that_a_skip_ties_to_what_must_stay_are_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.b(torch.relu(self.a(x)))
            return self.c(y), torch.sigmoid(y)

    network, x = Net().eval(), torch.randn(1, 3, 8, 8)
    graph = trace(network, x)
    filters = LayerScheme("keep", "filter", 2.0)
    assert Candidates(network, graph).build(Scheme({"a": filters, "b": LayerScheme("1x1")}, couplings(graph))).scheme["a"] == filters
    built = Candidates(network, graph).build(Scheme({"a": filters, "b": LayerScheme("skip")}, couplings(graph)))
    assert built.scheme["a"].pruning == "none"
    assert prune_(built.module, built.scheme) == {}


def test_the_search_offers_what_is_possible_allowed_and_large() -> None:
    network = npas_tiny().eval()
    graph = trace(network, torch.zeros(1, 3, 32, 32))
    found = searched_types(network, graph, SearchScheme(filter_types=("keep", "1x1", "skip")))
    assert found["stem.0"] == ("keep", "1x1") and "skip" in {kind for kinds in found.values() for kind in kinds}
    assert set(searched_types(network, graph, SearchScheme(filter_types=("keep",)))) == set()
    assert searched_types(network, graph, SearchScheme(filter_types=("1x1",)))["stem.0"] == ("1x1",)
    largest = max(graph.prunable, key=lambda layer: layer.macs)
    assert set(searched_types(network, graph, SearchScheme(min_share=largest.macs / graph.macs))) <= {largest.module}
