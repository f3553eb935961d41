"""Dependent layers, sizes and outputs of filter pruning against torch-pruning, which finds them in another way (a graph of dependencies between pairs of layers)."""

from __future__ import annotations

import pytest

from benchmarks.structure import NETWORKS, compare

pytest.importorskip("torch_pruning")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_two_networks_lose_what_torch_pruning_takes(name):
    result = compare(name, 64)
    assert result.agrees and result.asked >= 12, result


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_networks_lose_what_torch_pruning_takes(name):
    result = compare(name, 96 if name == "inception_v3" else 64)
    assert result.agrees, result
