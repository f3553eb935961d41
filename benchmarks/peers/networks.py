"""The networks: torchvision architectures with random weights whose batch norms are calibrated, exported once for all engines and kept by name and seed. Imports torch.

Random weights with fresh batch norms give outputs of the order of 1e-10 or 1e10, with which any comparison of engines passes; calibrated on noise, every layer matters.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from stages.graph import Graph
    from stages.schemes import Scheme

SIZE = 224
NETWORKS = {
    "vgg16": 8.2,
    "resnet18": 5.3,
    "mobilenet_v2": 1.8,
    "mobilenet_v3_large": 2.0,
    "efficientnet_b0": 2.0,
}  # name -> pruning rate (the paper's; 2 for the last two)
BLOCK = 8  # filters that share their kept positions
FORMAT = 1  # raise it when what is exported changes


def example(seed: int) -> torch.Tensor:
    """The input on which engines are compared and timed, (1, 3, 224, 224)."""
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed + 1))


def build(name: str, seed: int, size: int = SIZE, **options: object) -> nn.Module:
    """torchvision's network ``name`` in eval mode, batch norms calibrated on noise of ``size`` x ``size`` pixels; the same weights for the same seed and versions."""
    from stages.tasks.vision import torchvision

    torch.manual_seed(seed)
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, 0.0, 0.1)
        norm.momentum = None  # a plain average over the calibration batches
        norm.train()
    if norms:
        with torch.no_grad():
            model(torch.randn(8, 3, size, size))
    return model.eval()  # type: ignore[no-any-return]


def pruned(name: str, rate: float) -> tuple[nn.Module, torch.Tensor, Graph, Scheme]:
    """(network, input, graph, scheme) of seed 0, block-punched with BLOCK filters at ``rate`` as in benchmarks/engines.py; left dense at a rate of 1. What compile_model takes."""
    from stages.graph import trace
    from stages.schemes import Scheme, prune_, uniform_scheme

    module, x = build(name, 0), example(0)
    graph = trace(module, x)
    scheme = uniform_scheme(graph, "block-punched", rate, BLOCK) if rate > 1 else Scheme()
    prune_(module, scheme)
    return module, x, graph, scheme


def channels_last(model: nn.Module) -> nn.Module:
    """``model`` itself with its convolutions' weights in channels-last layout."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's stubs lack it


def source(name: str, seed: int, cache: Path, finish: Callable[[Path], None]) -> Path:
    """A folder with network.pt2, input.npy, output.npy and what ``finish(folder)`` adds, made at the first call; an interrupted or failing one leaves nothing."""
    folder = cache / f"{name}-{SIZE}-seed{seed}-torch{torch.__version__}-format{FORMAT}"
    if not (folder / "source").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".source-", dir=folder))
        try:
            _export(build(name, seed), example(seed), temporary)
            finish(temporary)
            os.replace(temporary, folder / "source")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder / "source"


def _export(model: nn.Module, x: torch.Tensor, folder: Path) -> None:
    with torch.no_grad():
        y, other = model(x), model(torch.flip(x, (3,)))
    if float((y - other).abs().max() / y.abs().max()) < 0.02:
        raise RuntimeError("The output hardly depends on the input, so comparing outputs would prove nothing.")
    np.save(folder / "input.npy", x.numpy())
    np.save(folder / "output.npy", y.numpy())
    torch.export.save(torch.export.export(model, (x,)), folder / "network.pt2")
