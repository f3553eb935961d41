"""Whole networks: fused, shrunk, planned and run; schemes of every kind; what stands in the manifest."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import Fire, assert_equal, calibrated, check, inputs, randomised
from torch import Tensor, nn

from stages.compiler import CompiledModel, compile_model
from stages.errors import UnsupportedOperator, UsageError, WrongOutput
from stages.graph import trace
from stages.schemes import LayerScheme, Scheme, prune_, uniform_scheme


def pruned(module: nn.Module, pruning: str, rate: float, block: int, shape: tuple[int, ...]) -> tuple[nn.Module, Scheme]:
    scheme = uniform_scheme(trace(module, torch.zeros(shape)), pruning, rate, block)
    module = copy.deepcopy(module)
    prune_(module, scheme)
    return module, scheme


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    channels=st.integers(3, 37),
    squeezed=st.integers(1, 9),
    kernel=st.sampled_from([3, 5]),
    height=st.integers(9, 24),
    width=st.integers(9, 24),
    batch=st.integers(1, 2),
)
def test_mobile_blocks_of_any_width(channels: int, squeezed: int, kernel: int, height: int, width: int, batch: int) -> None:
    check(randomised(Fire(channels, squeezed, kernel)), (batch, 3, height, width))


def test_fusion_leaves_no_step_of_its_own_for_norms_activations_sums_and_gates() -> None:
    model = check(randomised(Fire()), (1, 3, 32, 32))
    kinds = [k["kernel"] for k in model.manifest["kernels"]]
    assert kinds.count("elementwise") == 0  # the gate's product, too, is in the weights behind it
    assert sum(kinds.count(kind) for kind in ("gather", "winograd", "matvec")) == 7 and kinds.count("depthwise") == 1


class Random(nn.Module):
    """A drawn chain of blocks, some with residual sums or concatenations."""

    def __init__(self, kinds: list[str], width: int):
        super().__init__()
        self.kinds, c = kinds, width
        self.stem = nn.Conv2d(2, c, 3, padding=1)
        self.layers = nn.ModuleList()
        for kind in kinds:
            depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
            self.layers.append(
                depthwise
                if kind == "depthwise"
                else nn.Conv2d(2 * c if kind == "concat" else c, c, 1 if kind == "late" else 3, padding=0 if kind == "late" else 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.stem(x)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "concat":
                x = layer(torch.cat([x, y], 1))
            elif kind == "late":
                x = torch.relu(layer(x).sigmoid() * x - y)
            elif kind == "residual":
                x = torch.relu(x + layer(x))
            elif kind == "swapped":
                x = y - nn.functional.silu(layer(x))
            else:
                x, y = layer(x), nn.functional.max_pool2d(x, 3, 1, 1)
        return x + y


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(kinds=st.lists(st.sampled_from(["depthwise", "concat", "late", "residual", "swapped"]), min_size=1, max_size=6), width=st.sampled_from([3, 8, 20]))
def test_random_graphs(kinds: list[str], width: int) -> None:
    check(randomised(Random(kinds, width)), (1, 2, 8, 9))


@pytest.mark.parametrize("pruning", ["block-punched", "pattern", "filter"])
@pytest.mark.parametrize(("rate", "block"), [(3.0, 4), (2.5, 8), (3.0, 16), (10.0, 32), (2.5, 5)])
def test_schemes_run_as_pytorch_says(pruning: str, rate: float, block: int) -> None:
    module, scheme = pruned(randomised(Fire(32, 8)), pruning, rate, block, (1, 3, 20, 20))
    model = check(module, (1, 3, 20, 20), scheme=scheme)
    assert model.manifest["macs"] < model.manifest["macs_dense"]


def test_mixed_scheme() -> None:
    module = randomised(Fire(32, 8))
    graph = trace(module, torch.zeros(1, 3, 20, 20))
    uniform = uniform_scheme(graph, "block-punched", 3, 8)
    own = {
        "expand.0": LayerScheme("keep", "filter", 2.0, 0),
        "conv.0": LayerScheme("keep", "pattern", 3.0, 8),
        "classifier": LayerScheme("keep", "block-based", 2.0, 16),
    }
    scheme = Scheme({**uniform.layers, **own}, uniform.coupled)
    prune_(module, scheme)
    model = check(module, (1, 3, 20, 20), scheme=scheme)
    assert {k["scheme"] for k in model.manifest["kernels"]} >= {"filter 2x", "pattern/8 3x", "block-based/16 2x", "block-punched/8 3x"}


def test_filter_pruning_shrinks_producers_and_consumers() -> None:
    module, scheme = pruned(
        randomised(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1))), "filter", 2.0, 0, (1, 3, 10, 10)
    )
    model = check(module, (1, 3, 10, 10), scheme=scheme)
    assert model.manifest["macs"] == 64 * (16 * 27 + 8 * 16)


def test_macs_count_what_is_computed() -> None:
    module, scheme = pruned(randomised(nn.Sequential(nn.Conv2d(32, 64, 1))), "block-punched", 4.0, 16, (1, 32, 6, 6))
    model = compile_model(module, torch.zeros(1, 32, 6, 6), scheme)
    assert (model.manifest["macs"], model.manifest["macs_dense"]) == (36 * 64 * 8, 36 * 64 * 32)


def test_a_weight_outside_its_scheme_is_an_error() -> None:
    module, scheme = pruned(randomised(nn.Sequential(nn.Conv2d(8, 16, 3))), "block-punched", 3.0, 8, (1, 8, 6, 6))
    broken = copy.deepcopy(module)
    with torch.no_grad():
        broken[0].weight.fill_(1.0)  # type: ignore[index, operator]
    with pytest.raises(UsageError, match="outside"):
        compile_model(broken, torch.zeros(1, 8, 6, 6), scheme)


def test_an_operator_without_rule_is_named() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    with pytest.raises(UnsupportedOperator, match="sin") as caught:
        compile_model(Sine(), torch.zeros(1, 3, 4, 4))
    assert "stages/compiler/lower.py" in caught.value.hint


def test_wrong_output_is_an_error() -> None:
    module = randomised(Fire())
    graph = trace(module, torch.zeros(1, 3, 20, 20))
    wrong = graph.replace(next(x.name for x in graph if x.op == "relu6"), op="relu", attrs={})
    with torch.no_grad():
        module.stem[1].bias.fill_(9.0)  # type: ignore[union-attr, index, operator]
    with pytest.raises(WrongOutput):
        compile_model(module, torch.zeros(1, 3, 20, 20), graph=wrong)


def test_several_outputs_and_an_output_read_inside() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.a(x)
            return first, self.b(torch.relu(first))

    check(randomised(Two()), (1, 3, 6, 6))


def load(name: str) -> nn.Module:
    from stages.tasks.vision import torchvision

    return randomised(getattr(torchvision.models, name)(weights=None))


def dense_and_sparse(name: str) -> tuple[CompiledModel, CompiledModel]:
    module = load(name)
    x = inputs(1, 3, 224, 224)
    graph = trace(module, x)
    dense = compile_model(module, x, graph=graph)
    assert_equal(dense, module, x, tolerance=2e-4)
    scheme = uniform_scheme(graph, "block-punched", 3.0, 16)
    prune_(module, scheme)
    sparse = compile_model(module, x, scheme, graph=graph)
    assert_equal(sparse, module, x, tolerance=2e-4)
    return dense, sparse


def test_mobilenet_v2() -> None:
    dense, sparse = dense_and_sparse("mobilenet_v2")
    assert dense.manifest["macs"] == dense.manifest["macs_dense"] == 300_774_272
    assert sparse.manifest["macs"] < 0.45 * dense.manifest["macs"]


NETWORKS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s", "googlenet", "inception_v3", "mnasnet0_5", "mnasnet1_0",
    "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1",
    "vgg16", "vgg16_bn",
)  # fmt: skip
QUICK = ("googlenet", "mobilenet_v3_small", "shufflenet_v2_x1_0")  # concatenations, gates, shuffles
LOSSY = 1e-3  # of the largest output: Winograd's F(4) and F(6), one layer after another


def network(name: str, size: int) -> nn.Module:
    from stages.tasks.vision import torchvision

    extra = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return calibrated(torchvision.models.get_model(name, weights=None, **extra), 1, 3, size, size)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in NETWORKS])
def test_torchvision_networks(name: str) -> None:
    size = 96 if name == "inception_v3" else 64
    module, x, other = network(name, size), inputs(1, 3, size, size), inputs(1, 3, size, size, seed=2)
    graph = trace(module, x)
    model = compile_model(module, x, graph=graph)
    assert_equal(model, module, x, tolerance=LOSSY)
    first, second = model(x.numpy())[0], model(other.numpy())[0]
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()  # else equal outputs would prove nothing
    scheme = uniform_scheme(graph, "block-punched", 3.0, 16)
    prune_(module, scheme)
    assert_equal(compile_model(module, x, scheme, graph=graph), module, x, tolerance=LOSSY)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1"])
def test_concatenations_are_written_in_place(name: str) -> None:
    kernels = compile_model(network(name, 64), inputs(1, 3, 64, 64), check=False).manifest["kernels"]
    assert not [k["layer"] for k in kernels if k["kernel"] == "copy"]


@pytest.mark.full
def test_the_concatenations_of_densenet_need_no_copies() -> None:
    kernels = compile_model(network("densenet121", 64), inputs(1, 3, 64, 64), check=False).manifest["kernels"]
    assert len(kernels) < 200 and not [k["layer"] for k in kernels if k["kernel"] == "copy"]
