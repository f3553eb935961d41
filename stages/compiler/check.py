"""The check after every compilation: outputs equal PyTorch's. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stages.compiler.model import CompiledModel
from stages.errors import WrongOutput

_SEED = 20210622  # of the random inputs


def random_inputs(shapes: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    """Standard normal inputs, always the same ones."""
    generator = np.random.default_rng(_SEED)
    return tuple(generator.standard_normal(tuple(s), dtype=np.float32) for s in shapes)


def compare(model: CompiledModel, module: nn.Module, tolerance: float) -> tuple[float, float]:
    """(largest error, largest output) against ``module`` in double precision, so that the error is the compiled network's alone. WrongOutput beyond ``tolerance`` times the latter."""
    inputs = random_inputs([i["shape"] for i in model.manifest["inputs"]])
    expected = _reference(module, inputs)
    found = model(*inputs)
    worst, largest = 0.0, 0.0
    for e, f in zip(expected, found, strict=True):
        error = np.abs(e - f)
        worst = max(worst, float(error.max(initial=0)) if np.isfinite(error).all() else float("inf"))
        largest = max(largest, float(np.abs(e).max(initial=0)))
    if not worst <= tolerance * max(largest, 1e-30):
        message = f"The compiled network's outputs differ from PyTorch's by {worst:.2g}, where the largest output is {largest:.2g} and the tolerance {tolerance:g} of that."
        raise WrongOutput(message, "Report this with the network; a larger tolerance (compile.tolerance) only makes sense for ill-conditioned networks.")
    return worst, largest


def _reference(module: nn.Module, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    exact = copy.deepcopy(module).cpu().double().eval()
    with torch.inference_mode():
        made = exact(*(torch.from_numpy(x).double() for x in inputs))
    return [t.numpy() for t in _tensors(made)]


def _tensors(made: object) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made
    return [t for part in parts for t in _tensors(part)]  # type: ignore[attr-defined]
