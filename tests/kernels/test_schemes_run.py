"""Every pruning scheme on every kind of layer: compiled sparse, equal to PyTorch, and only what is kept is computed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_kit import assert_equal, inputs, randomised
from torch import nn

from stages.compiler import CompiledModel, compile_model
from stages.graph import trace
from stages.schemes import LayerScheme, Scheme, prune_, uniform_scheme

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
    """What the manifest says of the only layer."""
    (found,) = [k for k in model.manifest["kernels"] if k["kernel"] != "boundary"]
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
    assert "rows of 16 columns" in row(rows)["reason"] and "groups of filters" in row(columns)["reason"]


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
