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

NEAR = 0.1  # of the tolerance: single precision has a hundredth of the default one


def compare(model: CompiledModel, module: nn.Module, tolerance: float) -> tuple[float, float] | None:
    """(largest error, largest output) against ``module``. WrongOutput when the error is beyond ``tolerance`` times the largest output.

    PyTorch computes in single precision first, which is quick and whose own rounding is part of the error. Only when that comes near the limit it computes again in double precision, and the
    error is the compiled network's alone. A network for another processor runs in an emulator; None where there is none.
    """
    inputs = random_inputs([i["shape"] for i in model.manifest["inputs"]])
    found = model.emulated(*inputs) if isinstance(model, CrossModel) else model(*inputs)
    if found is None:
        return None
    worst, largest = _errors(_single(module, inputs), found)
    if not worst <= NEAR * tolerance * largest:
        worst, largest = _errors(_double(module, inputs), found)
    if not worst <= tolerance * max(largest, 1e-30):
        message = f"The compiled network's outputs differ from PyTorch's by {worst:.2g}, where the largest output is {largest:.2g} and the tolerance {tolerance:g} of that."
        raise WrongOutput(message, "Report this with the network; a larger tolerance (compile.tolerance) only makes sense for ill-conditioned networks.")
    return worst, largest


def _errors(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> tuple[float, float]:
    """(largest difference, largest expected number); the former is infinite when it isn't a number."""
    worst, largest = 0.0, 0.0
    for e, f in zip(expected, found, strict=True):
        error = np.abs(e.astype(np.float64) - f)
        worst = max(worst, float(error.max(initial=0)) if np.isfinite(error).all() else float("inf"))
        largest = max(largest, float(np.abs(e).max(initial=0)))
    return worst, largest


def _single(module: nn.Module, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    here = not module.training and all(t.device.type == "cpu" for t in module.state_dict(keep_vars=True).values())
    return _run(module if here else copy.deepcopy(module).cpu().eval(), [torch.from_numpy(x) for x in inputs])


def _double(module: nn.Module, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return _run(copy.deepcopy(module).cpu().double().eval(), [torch.from_numpy(x).double() for x in inputs])


def _run(module: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    with torch.inference_mode():
        made = module(*inputs)
    return [t.numpy() for t in _tensors(made)]


def _tensors(made: object) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made
    return [t for part in parts for t in _tensors(part)]  # type: ignore[attr-defined]
