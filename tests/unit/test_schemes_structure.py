"""Schemes on whole networks: filter pruning through residual blocks and gates, legality, and the check of zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stages.errors import ArtifactError, UsageError
from stages.graph import trace
from stages.schemes import DENSE, LayerScheme, Scheme, check_zeros, kept_count, legal_schemes, make_masks, prune_, uniform_scheme
from stages.tasks.zoo import SqueezeExcite, npas_tiny


class Residual(nn.Module):
    """stem -> (expand, depthwise, gate, project) + skip -> classifier, with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.expand, self.expand_bn = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.dw, self.dw_bn = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.gate = SqueezeExcite(12, 4)
        self.project, self.project_bn = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x)).relu()
        y = torch.relu(self.expand_bn(self.expand(x)))
        y = self.gate(torch.relu(self.dw_bn(self.dw(y))))
        x = x + self.project_bn(self.project(y))
        return self.classifier(x.mean((2, 3)))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = Residual()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as after training: nothing is zero or one by accident
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, 0.2, 0.5)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return module.eval()


def test_pruned_channels_are_exactly_zero_behind_every_layer_of_the_class():
    module, x = network(), torch.randn(2, 3, 8, 8)
    scheme = uniform_scheme(trace(module, x), "filter", 2.0)
    masks = prune_(module, scheme)
    seen: dict[str, Tensor] = {}
    for name in ("stem_bn", "project_bn", "expand_bn", "dw_bn", "gate", "dw"):
        module.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    for training in (False, True):
        module.train(training)
        module(x)
        assert bool((seen["stem_bn"] == 0).all((0, 2, 3)).sum() == 4) and bool((seen["expand_bn"] == 0).all((0, 2, 3)).sum() == 6)
        for name, mask in [
            ("stem_bn", "stem.weight"),
            ("project_bn", "stem.weight"),
            ("expand_bn", "expand.weight"),
            ("dw", "expand.weight"),
            ("dw_bn", "expand.weight"),
            ("gate", "expand.weight"),
        ]:
            lost = ~masks[mask].flatten(1).any(1)
            assert bool((seen[name][:, lost] == 0).all()), name
            if name.endswith("bn"):  # before a ReLU: kept channels live
                assert bool((seen[name][:, ~lost] != 0).any((0, 2, 3)).all()), name


def test_removing_the_pruned_channels_by_hand_changes_no_output():
    module, x = network(1), torch.randn(2, 3, 8, 8)
    masks = prune_(module, uniform_scheme(trace(module, x), "filter", 2.0))
    trunk, wide, gate = (masks[n].flatten(1).any(1) for n in ("stem.weight", "expand.weight", "gate.reduce.weight"))
    small = Residual().eval()
    for path, own, source in [("stem", trunk, None), ("stem_bn", trunk, None), ("expand", wide, trunk), ("expand_bn", wide, None), ("dw", wide, None), ("dw_bn", wide, None), ("gate.reduce", gate, wide),
                              ("gate.expand", wide, gate), ("project", trunk, wide), ("project_bn", trunk, None), ("classifier", None, trunk)]:  # fmt: skip
        layer, target = module.get_submodule(path), small.get_submodule(path)
        for name, tensor in layer.state_dict(keep_vars=True).items():
            value = tensor.detach() if own is None or tensor.ndim == 0 else tensor.detach()[own]
            value = value[:, source] if source is not None and tensor.ndim > 1 else value
            if isinstance(tensor, nn.Parameter):
                setattr(target, name, nn.Parameter(value))
            else:
                setattr(target, name, value)
    small.dw.groups = int(wide.sum())
    assert torch.allclose(small(x), module(x), atol=1e-5)


def test_a_class_is_scored_over_its_producers_and_pruned_at_the_largest_rate():
    module = network()
    with torch.no_grad():  # channel 7 is the weakest of the stem, but the strongest of the projection
        module.stem.weight[7] *= 0.01
        module.project.weight[7] *= 1000
    full = uniform_scheme(trace(module, torch.randn(1, 3, 8, 8)), "filter", 2.0)
    layers = dict(full.layers) | {"stem": LayerScheme("keep", "filter", 8.0)}
    masks = make_masks(module, Scheme(layers, full.coupled))
    assert masks["stem.bias"].tolist() == [False] * 7 + [True]
    assert masks["project_bn.weight"].tolist() == [False] * 7 + [True]


def test_a_class_with_a_producer_of_another_scheme_stays_whole():
    module = network()
    full = uniform_scheme(trace(module, torch.randn(1, 3, 8, 8)), "filter", 2.0)
    scheme = Scheme(dict(full.layers) | {"project": DENSE}, full.coupled)
    masks = prune_(module, scheme)
    assert not any(name.startswith(("stem", "project")) for name in masks) and "expand.weight" in masks
    check_zeros(module, scheme, masks)


def test_uniform_schemes_cover_what_is_legal():
    graph = trace(network(), torch.randn(1, 3, 8, 8))
    labels = {
        p: {k: v.label for k, v in uniform_scheme(graph, p, 3.0, 4).layers.items()} for p in ("none", "filter", "block-punched", "pattern", "block-based")
    }
    convolutions = {"stem", "expand", "gate.reduce", "gate.expand", "project"}
    assert labels["none"] == dict.fromkeys([*convolutions, "classifier"], "none")
    assert labels["block-punched"] == dict.fromkeys(convolutions, "block-punched/4 3x") | {"classifier": "block-based/4 3x"}
    assert labels["filter"] == dict.fromkeys(convolutions, "filter 3x") | {"classifier": "none"}
    assert labels["pattern"] == dict.fromkeys([*convolutions, "classifier"], "none") | {"stem": "pattern/4 3x"}
    assert labels["block-based"] == dict.fromkeys(convolutions, "none") | {"classifier": "block-based/4 3x"}


@pytest.mark.parametrize(
    "pruning, rate, block", [("patern", 3, 8), ("pattern", 2, 8), ("filter", 0.5, 8), ("block-punched", 3, 0), ("filter", float("inf"), 8)]
)
def test_uniform_scheme_refuses_what_no_layer_can_have(pruning, rate, block):
    graph = trace(network(), torch.randn(1, 3, 8, 8))
    with pytest.raises(UsageError):
        uniform_scheme(graph, pruning, rate, block)


ALL = ("none", "filter", "block-punched", "pattern")


def test_legal_schemes_of_each_kind_of_layer():
    graph = trace(network(), torch.randn(1, 3, 8, 8))

    def kinds(name: str) -> set[str]:
        found = legal_schemes(graph[name], graph, ALL, (2.0, 2.5, 3.0), (4, 8))
        assert found[0] == DENSE and len(set(found)) == len(found)
        return {scheme.pruning for scheme in found}

    assert kinds("stem") == {"none", "filter", "block-punched", "pattern"}
    assert kinds("project") == {"none", "filter", "block-punched"}
    assert kinds("classifier") == {"none", "block-based"}
    assert kinds("dw") == {"none"} and kinds("stem_bn") == {"none"}
    patterns = [s for s in legal_schemes(graph["stem"], graph, ALL, (2.0, 2.5, 3.0), (4, 8)) if s.pruning == "pattern"]
    assert patterns and all(s.rate >= 2.5 for s in patterns)


def test_legal_schemes_leave_out_what_is_the_same():
    graph = trace(network(), torch.randn(1, 3, 8, 8))
    found = legal_schemes(graph["project"], graph, ("block-punched",), (2.0, 2.01, 1.0), (4, 8, 16, 32))
    assert found == (DENSE, LayerScheme("keep", "block-punched", 2.0, 4), LayerScheme("keep", "block-punched", 2.0, 8))


def test_blocks_of_channels_multiply_what_may_be_punched():
    graph = trace(network(), torch.randn(1, 3, 8, 8))
    found = legal_schemes(graph["project"], graph, ALL, (3.0,), (8,), (1, 4, 16, 32))  # 12 input channels
    assert [s.label for s in found] == ["none", "filter 3x", "block-punched/8 3x", "block-punched/8x4 3x"]  # one unit of 12 channels can't be halved
    mixed = uniform_scheme(graph, "block-punched", 3.0, 8, channels=4)
    assert mixed["stem"].label == "block-punched/8x4 3x" and mixed["classifier"].label == "block-based/8x4 3x"
    with pytest.raises(UsageError, match="blocks of 4 input channels"):
        uniform_scheme(graph, "pattern", 3.0, 8, channels=4)


def test_scheme_files_from_before_there_were_blocks_of_channels_are_read():
    old = {"filter_type": "keep", "scheme": "block-punched", "rate": 3.0, "block": 8}
    assert LayerScheme.from_json(old) == LayerScheme("keep", "block-punched", 3.0, 8)
    new = LayerScheme("keep", "block-punched", 3.0, 8, 4)
    assert LayerScheme.from_json(new.to_json()) == new
    with pytest.raises(ArtifactError):
        LayerScheme.from_json(new.to_json() | {"channels": 0})


@pytest.mark.parametrize("pruning", ["filter", "block-punched", "pattern"])
def test_every_legal_scheme_of_the_zoo_prunes_and_verifies(pruning):
    module = npas_tiny().eval()
    graph = trace(module, torch.randn(1, 3, 32, 32))
    choices = {layer.module: legal_schemes(layer, graph, (pruning,), (2.5, 10.0), (8, 32))[-1] for layer in graph.prunable}
    scheme = Scheme(choices, uniform_scheme(graph, "none", 1).coupled)
    masks = prune_(module, scheme)
    assert masks
    check_zeros(module, scheme, masks)
    check_zeros(module.state_dict(), Scheme.from_json(scheme.to_json()))
    for name, mask in masks.items():
        layer = choices.get(name.removesuffix(".weight"))
        if layer and layer.pruning in ("block-punched", "block-based"):
            assert int(mask[0].sum()) == kept_count(mask[0].numel(), layer.rate)


def broken(change) -> tuple[nn.Module, Scheme, dict[str, Tensor]]:
    module = npas_tiny().eval()
    graph = trace(module, torch.randn(1, 3, 32, 32))
    filters, punched = uniform_scheme(graph, "filter", 2.0), uniform_scheme(graph, "block-punched", 3.0)
    layers = dict(punched.layers) | {"stem.0": LayerScheme("keep", "pattern", 4.5, 8), "head.0": filters["head.0"]}
    scheme = Scheme(layers, filters.coupled)
    masks = prune_(module, scheme)
    check_zeros(module, scheme, masks)
    change(module.state_dict(), masks)
    return module, scheme, masks


def revive(tensors: dict[str, Tensor], masks: dict[str, Tensor], name: str) -> None:
    place = tuple(int(i) for i in (~masks[name]).nonzero()[0])
    tensors[name][place] = 0.1


CHANGES = {
    "outside": (lambda t, m: revive(t, m, "blocks.0.layers.0.0.weight"), "'blocks.0.layers.0.0' has 1 weights outside"),
    "batch norm": (lambda t, m: revive(t, m, "head.1.bias"), "'head.1' has 1 weights"),
    "missing": (lambda t, m: m.pop("stem.0.weight"), "'stem.0' has no mask"),
    "extra": (lambda t, m: m.update({"blocks.1.layers.1.0.weight": torch.ones(32, 1, 5, 5, dtype=torch.bool)}), "'blocks.1.layers.1.0' has a mask"),
    "shape": (lambda t, m: m.update({"stem.0.weight": torch.ones(3, dtype=torch.bool)}), "'stem.0' has a mask that doesn't fit"),
    "one filter": (lambda t, m: m["classifier.weight"][0].fill_(True), "'classifier' keeps different positions"),
    "count": (lambda t, m: m["classifier.weight"][8:].fill_(True), "'classifier' keeps other than the 21 positions"),
    "pattern": (lambda t, m: m["stem.0.weight"].masked_fill_(m["stem.0.weight"].flatten(2).any(-1)[..., None, None], True), "'stem.0' keeps kernels"),
    "class": (lambda t, m: m["head.1.bias"].fill_(True), "'head.1' keeps other channels"),
    "rate": (lambda t, m: [m[f"head.{x}"].fill_(True) for x in ("0.weight", "1.weight", "1.bias")], "'head.0' keeps 64 channels, not the 32"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_check_of_zeros_names_the_layer_that_is_wrong(name):
    change, message = CHANGES[name]
    with pytest.raises(UsageError, match=message):
        check_zeros(*broken(change))


class Stacked(nn.Module):
    """The rows of one image below those of another: the same channels can't be told apart along dimension 1 alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(torch.cat([self.a(x), self.b(x)], 2), 1).flatten(1))


def test_channels_that_are_stacked_along_rows_stay_and_pooling_takes_them():
    graph = trace(Stacked().eval(), torch.zeros(1, 3, 5, 5))
    for path in ("a", "b"):
        layer = next(x for x in graph.prunable if x.module == path)
        assert {s.pruning for s in legal_schemes(layer, graph, ("none", "filter", "block-punched"), (2.0,), (2,))} == {"none", "block-punched"}
