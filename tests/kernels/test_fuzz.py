"""Random graphs under random schemes, compiled and compared with PyTorch."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from kernel_kit import inputs, randomised
from random_networks import draw_network

from stages.compiler import CompiledModel, compile_model
from stages.graph import Graph, couplings, trace
from stages.schemes import LayerScheme, Scheme, legal_schemes, prune_

TOLERANCE = 3e-4  # of the largest output: Winograd's F(6) loses most
RATES, BLOCKS = (1.5, 2.25, 3.0, 5.0, 8.0), (4, 8, 16, 32)
SCHEMES = ("none", "filter", "block-punched", "pattern", "block-based")
MINUTES = float(os.environ.get("NPAS_FUZZ_MINUTES", "8"))  # after which the long test begins no other round
ROUNDS = int(os.environ.get("NPAS_FUZZ_ROUNDS", "25"))
SEED = int(os.environ.get("NPAS_FUZZ_SEED", "1"))  # of the first round
checks = settings(deadline=None, suppress_health_check=list(HealthCheck))


def drawn_scheme(data: st.DataObject, graph: Graph) -> Scheme:
    """For each layer dense or one of its legal schemes; every other network stays dense."""
    if data.draw(st.booleans()):
        return Scheme()
    layers: dict[str, LayerScheme] = {}
    for layer in graph.prunable:
        layers[layer.module] = data.draw(st.sampled_from(legal_schemes(layer, graph, SCHEMES, RATES, BLOCKS)))
    return Scheme(layers, couplings(graph))


def fuzz(data: st.DataObject, most: int) -> CompiledModel:
    """Draw, prune, compile for some threads (which compares with PyTorch), and compare on other inputs."""
    torch.manual_seed(0)
    module, shape = draw_network(data.draw, most)
    module = randomised(module)
    graph = trace(module, torch.zeros(shape))
    scheme = drawn_scheme(data, graph)
    prune_(module, scheme)
    model = compile_model(module, torch.zeros(shape), scheme, threads=data.draw(st.sampled_from((1, 1, 2, 3))), graph=graph)
    x = inputs(*shape, seed=7)
    with torch.inference_mode():
        expected = module.double()(x.double())
    for found, wanted in zip(model(x.numpy()), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=TOLERANCE * max(float(wanted.abs().max()), 1e-6))
    assert model.manifest["max_abs_err"] <= TOLERANCE * max(model.manifest["max_abs_output"], 1e-6)
    assert model.manifest["macs"] >= 0 and len(model.manifest["kernels"]) >= 2
    return model


@settings(checks, max_examples=25, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_random_graphs_and_schemes(data: st.DataObject) -> None:
    fuzz(data, most=3)


@pytest.mark.full
def test_hundreds_of_random_graphs_and_schemes(capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds of 20 graphs, each round of another seed, as long as the time allows."""
    begin, graphs, rounds = time.monotonic(), 0, 0

    @settings(checks, max_examples=20, database=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        nonlocal graphs
        fuzz(data, most=5)
        graphs += 1

    while rounds < ROUNDS and time.monotonic() - begin < 60 * MINUTES:
        seed(SEED + rounds)(run)()
        rounds += 1
    with capsys.disabled():
        print(f"\n{graphs} random graphs under random schemes equal PyTorch ({(time.monotonic() - begin) / 60:.1f} min)")
    assert graphs >= 20
