"""The check after every compilation: outputs equal PyTorch's. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stages.compiler.cross import CrossModel
from stages.compiler.model import CompiledModel
from stages.compiler.random_inputs import random_inputs
from stages.errors import WrongOutput


def compare(model: CompiledModel, module: nn.Module, tolerance: float) -> tuple[float, float] | None:
    """(largest error, largest output) against ``module`` in double precision, so that the error is the compiled network's alone. WrongOutput beyond ``tolerance`` times the latter.

    A network for another processor runs in an emulator; None where there is none.
    """
    inputs = random_inputs([i["shape"] for i in model.manifest["inputs"]])
    found = model.emulated(*inputs) if isinstance(model, CrossModel) else model(*inputs)
    if found is None:
        return None
    expected = _reference(module, inputs)
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
