"""Every pruning scheme on every kind of layer: compiled sparse, equal to PyTorch, and only what is kept is computed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import assert_equal, inputs, randomised
from torch import Tensor, nn

from stages.compiler import CompiledModel, compile_model
from stages.compiler.target import resolve
from stages.graph import couplings, trace
from stages.schemes import LayerScheme, Scheme, legal_schemes, prune_, uniform_scheme

few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def pruned(layer: nn.Module, shape: tuple[int, ...], scheme: LayerScheme, threads: int = 1) -> tuple[CompiledModel, int]:
    """The layer alone, pruned by ``scheme``, compiled and compared; and how many of its weights stay."""
    module, example = randomised(nn.Sequential(layer)), inputs(*shape)
    named = Scheme({"0": scheme})
    masks = prune_(module, named)
    model = compile_model(module, example, named, threads=threads)
    assert_equal(model, module, inputs(*shape, seed=7))
    return model, int(masks["0.weight"].sum())


def row(model: CompiledModel) -> dict[str, Any]:
    """What the manifest says of the only layer, whatever brings its input into shape."""
    (found,) = [k for k in model.manifest["kernels"] if k["kernel"] not in ("boundary", "space_to_depth")]
    return found


@few
@given(data=st.data())
def test_block_based_of_any_size(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(32, 150)), data.draw(st.sampled_from([16, 40, 64, 77, 200]))
    block, channels = data.draw(st.sampled_from([1, 2, 4, 5, 8, 16, 32])), data.draw(st.sampled_from([1, 1, 4, 16]))
    scheme = LayerScheme("keep", "block-based", data.draw(st.sampled_from([1.5, 3.0, 8.2])), block, channels)
    model, _ = pruned(nn.Linear(columns, rows, bias=data.draw(st.booleans())), (1, columns), scheme, threads=data.draw(st.sampled_from([1, 2])))
    assert row(model)["kernel"] == "matvec"


@pytest.mark.parametrize(("block", "channels"), [(4, 1), (8, 1), (16, 1), (32, 1), (8, 4), (1, 16), (1, 4), (8, 16)])
def test_linear_layers_compute_no_more_than_their_mask_keeps(block: int, channels: int) -> None:
    model, kept = pruned(nn.Linear(256, 128), (1, 256), LayerScheme("keep", "block-based", 4.0, block, channels))
    assert row(model)["kernel"] == "matvec" and model.manifest["macs"] == kept == 256 * 128 // 4


def test_rows_of_blocks_run_along_the_inputs_and_columns_along_the_filters() -> None:
    rows, _ = pruned(nn.Linear(256, 128), (1, 256), LayerScheme("keep", "block-based", 4.0, 1, 16))
    columns, _ = pruned(nn.Linear(256, 128), (1, 256), LayerScheme("keep", "block-based", 4.0, 8))
    assert f"rows of {resolve('host').lanes} columns" in row(rows)["reason"] and "groups of filters" in row(columns)["reason"]


def test_a_linear_layer_with_more_inputs_than_16_bits_number() -> None:
    pruned(nn.Linear(70_000, 36), (1, 70_000), LayerScheme("keep", "block-based", 50.0, 4))


def test_a_linear_layer_behind_an_image_and_a_convolution_as_large_as_its_input() -> None:
    flat = randomised(nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 7 * 7, 64)))
    scheme = uniform_scheme(trace(flat, inputs(1, 3, 7, 7)), "block-punched", 4.0, 8)
    prune_(flat, scheme)
    assert_equal(compile_model(flat, inputs(1, 3, 7, 7), scheme), flat, inputs(1, 3, 7, 7, seed=2))
    model, kept = pruned(nn.Conv2d(40, 64, 7), (1, 40, 7, 7), LayerScheme("keep", "block-punched", 4.0, 8))
    assert row(model)["kernel"] == "matvec" and model.manifest["macs"] == kept


def test_a_batch_of_linear_layers_reuses_its_weights() -> None:
    model, _ = pruned(nn.Linear(64, 48), (3, 64), LayerScheme("keep", "block-based", 4.0, 8))
    assert row(model)["kernel"] == "gather"


SHARED = [("block-punched", g, 1) for g in (4, 8, 16, 32)] + [("block-punched", 8, 4), ("pattern", 8, 1), ("pattern", 16, 1)]
PLACES = {
    "first layer": (nn.Conv2d, (3, 32, 3, 2, 1), (1, 3, 33, 47)),
    "first layer 7x7": (nn.Conv2d, (3, 32, 7, 2, 3), (1, 3, 40, 40)),
    "3x3": (nn.Conv2d, (24, 64, 3, 1, 1), (2, 24, 13, 14)),
    "3x3 strided": (nn.Conv2d, (40, 64, 3, 2, 1), (1, 40, 15, 28)),
    "odd channels": (nn.Conv2d, (23, 45, 3, 2, 1), (1, 23, 11, 13)),
    "1x1": (nn.Conv2d, (96, 64, 1), (1, 96, 9, 11)),
    "1x1 strided": (nn.Conv2d, (64, 96, 1, 2), (1, 64, 14, 14)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("pruning", "block", "channels"), SHARED, ids=lambda x: str(x))
def test_every_scheme_on_every_kind_of_convolution(place: str, pruning: str, block: int, channels: int) -> None:
    make, arguments, shape = PLACES[place]
    layer = make(*arguments)
    if pruning == "pattern" and layer.kernel_size != (3, 3):
        pytest.skip("patterns are of 3x3 kernels")
    model, kept = pruned(layer, shape, LayerScheme("keep", pruning, 8.0, block, channels))
    found, pixels = row(model), math.prod(model.manifest["outputs"][0]["shape"]) // layer.out_channels
    assert found["macs"] >= kept * pixels
    dense = layer.weight.numel() * pixels
    assert found["macs"] < dense / 2, "it runs sparse"
    if place == "3x3" and block % 8 == 0:  # elsewhere the union of two lists may be the cheaper one
        assert found["macs"] == kept * pixels


@pytest.mark.parametrize(("rate", "kernel"), [(2.25, "winograd"), (12.0, "planar_conv")])
def test_patterns_of_single_filters_run_filter_by_filter_on_planes_where_that_pays_else_dense(rate: float, kernel: str) -> None:
    module, example = randomised(nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.Conv2d(64, 64, 3, 1, 1))), inputs(1, 64, 28, 28)
    scheme = Scheme({"1": LayerScheme("keep", "pattern", rate, 1)})
    kept = int(prune_(module, scheme)["1.weight"].sum())
    model = compile_model(module, example, scheme)
    assert_equal(model, module, inputs(1, 64, 28, 28, seed=7), tolerance=1e-4)
    (found,) = [k for k in model.manifest["kernels"] if k["layer"] == "1"]
    assert found["kernel"] == kernel
    if kernel == "winograd":
        assert "runs dense" in found["reason"]
    else:
        assert found["macs"] == kept * 28 * 28


def test_strided_patterns_of_single_filters_compute_no_more_than_they_keep() -> None:
    model, kept = pruned(nn.Conv2d(64, 64, 3, 2, 1), (1, 64, 28, 28), LayerScheme("keep", "pattern", 8.0, 1))
    assert row(model)["macs"] == kept * 14 * 14


class Mixed(nn.Module):
    """First layer, residual sum, depthwise layer, concatenation, stride, linear layer: each prunable layer gets a scheme of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.back = nn.Sequential(nn.Conv2d(48, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.left = nn.Sequential(nn.Conv2d(32, 24, 3, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(32, 40, 1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.hidden, self.classifier = nn.Linear(64, 80), nn.Linear(80, 11)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 11)."""
        x = self.stem(x)
        x = x + self.back(self.deep(self.one(x)))
        x = self.down(torch.cat([self.left(x), self.right(x)], 1))
        return self.classifier(self.hidden(x.mean((2, 3))).relu())


@settings(few, max_examples=12)
@given(data=st.data())
def test_a_network_with_another_scheme_in_every_layer(data: st.DataObject) -> None:
    module, example = randomised(Mixed()), inputs(1, 3, 30, 30)
    graph = trace(module, example)
    drawn = {
        layer.module: data.draw(
            st.sampled_from(legal_schemes(layer, graph, ("none", "filter", "block-punched", "pattern"), (2.0, 3.0, 8.0), (1, 4, 8, 16), (1, 4)))
        )
        for layer in graph.prunable
    }
    scheme = Scheme(drawn, couplings(graph))
    prune_(module, scheme)
    model = compile_model(module, example, scheme, graph=graph)
    assert_equal(model, module, inputs(1, 3, 30, 30, seed=9), tolerance=5e-5)
    labels = {k["layer"]: k["scheme"] for k in model.manifest["kernels"]}
    assert all(labels.get(name, scheme.label) == scheme.label for name, scheme in drawn.items())
    assert model.manifest["macs"] <= model.manifest["macs_dense"]


def test_filter_pruning_shrinks_residual_sums_and_depthwise_layers() -> None:
    module, example = randomised(Mixed()), inputs(1, 3, 30, 30)
    graph = trace(module, example)
    filters = uniform_scheme(graph, "filter", 2.0)
    scheme = Scheme({name: filters[name] for name in ("stem.0", "one.0", "back.0")}, filters.coupled)
    prune_(module, scheme)
    model = compile_model(module, example, scheme, graph=graph)
    assert_equal(model, module, inputs(1, 3, 30, 30, seed=9))
    macs = {k["layer"]: k["macs"] for k in model.manifest["kernels"]}
    pixels = 15 * 15
    assert (
        macs["stem.0"] == 3 * 9 * 16 * pixels and macs["one.0"] == 16 * 24 * pixels and macs["deep.0"] == 24 * 9 * pixels and macs["back.0"] == 24 * 16 * pixels
    )
