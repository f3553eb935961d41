"""Filter pruning on whole networks: the pruned network of the old shape and its compiled form of smaller shapes agree, and the smaller one computes what is left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import assert_equal, inputs, randomised
from torch import Tensor, nn

from stages.compiler import compile_model
from stages.graph import trace
from stages.schemes import Scheme, prune_, uniform_scheme


def conv(inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outer))


class Branches(nn.Module):
    """A concatenation whose parts a sum, a grouped convolution and a shuffle read; halves that go two ways; a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8, 3, 2), conv(3, 16, 3, 2)
        self.same, self.grouped = conv(24, 24), conv(24, 16, 3, groups=4)
        self.left, self.right = conv(12, 12, 3, groups=12), conv(12, 12)
        self.last, self.classifier = conv(40, 8), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, 5)."""
        both = torch.cat([self.a(x), self.b(x)], 1).relu()
        both = (both + self.same(both)).relu()
        n, c, h, w = both.shape
        mixed = both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x, y = mixed.chunk(2, 1)
        x = torch.cat([self.left(x), self.right(y).relu(), self.grouped(both).relu()], 1)
        return self.classifier(self.last(x).relu().flatten(1))


def test_channels_go_through_concatenations_shuffles_halves_groups_and_flattening() -> None:
    module, example = randomised(Branches()), inputs(1, 3, 8, 8)
    graph = trace(module, example)
    scheme = uniform_scheme(graph, "filter", 2.0)
    assert {name for name, layer in scheme.layers.items() if layer.pruning == "filter"} == {"a.0", "b.0", "same.0", "right.0", "last.0"}
    prune_(module, scheme)
    model = compile_model(module, example, scheme, graph=graph)
    assert_equal(model, module, inputs(1, 3, 8, 8, seed=9))
    macs = {k["layer"]: k["macs"] for k in model.manifest["kernels"]}
    whole = {layer.name: layer.macs for layer in graph}
    assert macs["same.0"] * 4 == whole["same.0"] and macs["right.0"] * 4 == whole["right.0"] and macs["classifier"] * 2 == whole["classifier"]
    assert macs["a.0"] * 2 == whole["a.0"]


@settings(deadline=None, derandomize=True, max_examples=4, suppress_health_check=list(HealthCheck))
@given(rates=st.lists(st.sampled_from([1.0, 1.3, 2.0, 4.0, 50.0]), min_size=5, max_size=5))
def test_any_rates(rates: list[float]) -> None:
    module, example = randomised(Branches()), inputs(1, 3, 8, 8)
    graph = trace(module, example)
    names = ("a.0", "b.0", "same.0", "right.0", "last.0")
    full = {rate: uniform_scheme(graph, "filter", rate) for rate in set(rates)}
    scheme = Scheme({name: full[rate][name] for name, rate in zip(names, rates, strict=True)}, full[rates[0]].coupled)
    prune_(module, scheme)
    assert_equal(compile_model(module, example, scheme, graph=graph), module, inputs(1, 3, 8, 8, seed=9))


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "resnext50_32x4d", "regnet_y_400mf", "mobilenet_v3_small"])
def test_pruned_torchvision_networks_equal_their_compiled_form(name: str) -> None:
    from benchmarks.peers.networks import build

    module, example = build(name, 0, 64, **({"aux_logits": False, "init_weights": False} if name == "googlenet" else {})), inputs(1, 3, 64, 64)
    graph = trace(module, example)
    scheme = uniform_scheme(graph, "filter", 2.0)
    prune_(module, scheme)
    model = compile_model(module, example, scheme, graph=graph)
    assert_equal(model, module, inputs(1, 3, 64, 64, seed=9), tolerance=5e-5)
    assert model.manifest["macs"] < 0.45 * model.manifest["macs_dense"]  # half the filters read half the channels, but for the first layer, depthwise and grouped ones
