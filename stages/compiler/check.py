"""Two checks around every compilation: weights obey the scheme before, outputs equal PyTorch's after. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stages.compiler.model import CompiledModel
from stages.errors import UsageError, WrongOutput
from stages.graph.layer import Graph
from stages.schemes.scheme import PATTERN_WEIGHTS, LayerScheme, Scheme

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
    exact = copy.deepcopy(module).double().eval()
    with torch.inference_mode():
        made = exact(*(torch.from_numpy(x).double() for x in inputs))
    return [t.numpy() for t in _tensors(made)]


def _tensors(made: object) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made
    return [t for part in parts for t in _tensors(part)]  # type: ignore[attr-defined]


def obeys(graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme) -> None:
    """UsageError when a weight that the scheme prunes away isn't zero (or the scheme names a layer that isn't there)."""
    known = {layer.module: layer for layer in graph.prunable}
    for name, layer_scheme in scheme.layers.items():
        if name not in known:
            raise UsageError(f"The scheme prunes '{name}', which is no prunable layer of this network.", "Search for the scheme and compile with the same network.")
        weight = np.asarray(tensors[known[name].params["weight"]])
        if not _obeys(weight, layer_scheme):
            raise UsageError(f"Layer '{name}' has weights outside its scheme ({layer_scheme.label}).", "Apply the scheme first: stages.schemes.prune_, or 'npas search-pruner'.")


def _obeys(weight: np.ndarray, scheme: LayerScheme) -> bool:
    """Whether the non-zero weights have the structure of the scheme: no more positions, kernels or filters than it keeps."""
    if scheme.pruning in ("block-punched", "block-based"):
        return all(int(kept.sum()) <= _keeps(kept.size, scheme.rate) for kept in _unions(weight, scheme.block))
    if scheme.pruning == "pattern":
        grouped = (kept.reshape(weight.shape[1], -1) for kept in _unions(weight, scheme.block))
        return all(int(kept.sum(1).max()) <= PATTERN_WEIGHTS and int(kept.sum()) <= max(PATTERN_WEIGHTS, _kernels(kept, scheme.rate) * PATTERN_WEIGHTS) for kept in grouped)
    return True  # filters removed or not: a class that must stay whole is left dense


def _keeps(positions: int, rate: float) -> int:
    return max(1, round(positions / rate))


def _kernels(kept: np.ndarray, rate: float) -> int:
    """Kernels that a pattern layer keeps per group: ``PATTERN_WEIGHTS`` weights each, n / rate weights in all, rounded up at most."""
    return -(-round(kept.size / rate) // PATTERN_WEIGHTS)


def _unions(weight: np.ndarray, block: int) -> list[np.ndarray]:
    """For each group of ``block`` filters, which positions any of them keeps."""
    rows = (weight != 0).reshape(len(weight), -1)
    return [rows[start : start + block].any(0) for start in range(0, len(rows), max(block, 1))]
