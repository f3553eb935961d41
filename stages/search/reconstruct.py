"""Good initial weights for every filter type of every layer: each replacement learns the feature map of what it replaces (NPAS section 5.2; LANA, Molchanov et al. 2022, section 3.1).

One pass of the dense network over calibration images shows what each convolution reads; from that all its types are solved for at once (approximate.py), and the error is measured on images that
took no part. The result is kept in the state folder, where the processes of a search find it. Imports artifacts, progress, graph, schemes/patches and search/approximate of npas, and torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artifacts import load_checkpoint, save_checkpoint
from stages.errors import UsageError
from stages.graph.retype import conv_attrs
from stages.progress import Progress, Silent, bar
from stages.schemes.patches import PatchDrawer, watch
from stages.search.approximate import Moments, approximate, composed

PATCHES = 4096  # of each layer's input, to solve for the weights; a third as many more judge them
HELD_OUT = 4  # every fourth image is held out
SILENT = Silent()


@dataclass(frozen=True)
class Reconstructed:
    """``tensors[path][filter type]`` is the state_dict of that replacement; ``errors[path][filter type]`` its relative mean squared error on held-out images.

    0 is the layer itself, 1 as good as the layer's mean output for each channel; skip may well be above 1, since it has nothing to adapt.
    """

    tensors: Mapping[str, Mapping[str, Mapping[str, Tensor]]] = field(default_factory=dict)
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """For trials.json: one row a layer and type."""
        return [{"layer": path, "filter_type": kind, "error": error} for path, found in self.errors.items() for kind, error in found.items()]


def reconstruct(
    network: nn.Module, types: Mapping[str, Sequence[str]], images: Iterable[Tensor], count: int, sweeps: int = 4, progress: Progress = SILENT
) -> Reconstructed:
    """Weights and errors of the filter ``types`` of each layer (module path -> types; "keep" needs none) of ``network``, which is left as it was.

    ``images`` are batches of its inputs, ``count`` images in all; ``sweeps`` rounds of alternation for the separable types. Deterministic. UsageError with fewer than HELD_OUT images.
    """
    if count < HELD_OUT:
        raise UsageError(f"{count} calibration images are too few to reconstruct feature maps.", f"At least {HELD_OUT}; 256 is a good number.")
    convs: dict[str, nn.Conv2d] = {path: network.get_submodule(path) for path in types}  # type: ignore[misc]
    patches = _collect(network, convs, images, count)
    tensors: dict[str, dict[str, dict[str, Tensor]]] = {}
    errors: dict[str, dict[str, float]] = {}
    if convs:
        progress.say("how far new filter types miss the feature maps that they replace (0: not at all, 1: as far as a constant)")
    with bar(progress, "reconstructing feature maps", len(convs)):
        for path, conv in convs.items():
            seen, held_out = patches.pop(path)
            kinds = [kind for kind in types[path] if kind != "keep"]
            moments = Moments.of(seen).shrunk(len(seen)) if kinds != ["skip"] else Moments(torch.empty(0), torch.empty(0))
            weight, bias = conv.weight.detach().cpu(), None if conv.bias is None else conv.bias.detach().cpu()
            tensors[path] = {kind: approximate(weight, bias, moments, conv_attrs(conv), kind, sweeps) for kind in kinds}
            errors[path] = {kind: relative_error(weight, bias, found, held_out) for kind, found in tensors[path].items()}
            progress.advance(f"{path}: " + ", ".join(f"{kind} {error:.2g}" for kind, error in errors[path].items()))
    return Reconstructed(tensors, errors)


def relative_error(weight: Tensor, bias: Tensor | None, tensors: Mapping[str, Tensor], patches: Tensor) -> float:
    """Mean squared error of a replacement's output on ``patches`` (n, D), relative to the variance of the layer's own output around each channel's mean."""
    x, kernel = patches.double(), weight.double()
    shift = next((t for name, t in tensors.items() if name.endswith(".bias")), torch.zeros(len(kernel))).double()
    wanted = x @ kernel.flatten(1).T
    missed = wanted - x @ composed(tensors, kernel.shape).flatten(1).T + (0 if bias is None else bias.double()) - shift
    return float(missed.square().sum() / (wanted - wanted.mean(0)).square().sum().clamp_min(1e-30))


def load_or_reconstruct(path: Path, network: nn.Module, types: Mapping[str, Sequence[str]], images: Iterable[Tensor], count: int, sweeps: int, progress: Progress = SILENT) -> Reconstructed:
    """``reconstruct``, kept in the file ``path``: later calls, and other processes, load it."""
    if not path.exists():
        made = reconstruct(network, types, images, count, sweeps, progress)
        save_checkpoint(path, {"tensors": made.tensors, "errors": made.errors})
    content = load_checkpoint(path)
    return Reconstructed(content["tensors"], content["errors"])


class _Sampler:
    """Keeps patches of a convolution's input, every HELD_OUT-th image's apart."""

    def __init__(self, number: int, per_image: int):
        self.draw, self.images = PatchDrawer(number, per_image), 0
        self.found: tuple[list[Tensor], list[Tensor]] = ([], [])  # to learn from, held out

    def __call__(self, conv: nn.Module, inputs: Tensor) -> None:
        taken = self.draw(conv, inputs)
        held = (torch.arange(len(taken)) + self.images) % HELD_OUT == HELD_OUT - 1
        self.images += len(taken)
        for store, part in zip(self.found, (taken[~held], taken[held]), strict=True):
            store.append(part.flatten(0, 1))

    def patches(self) -> tuple[Tensor, Tensor]:
        """(n, D) to learn from and (n', D) held out."""
        return torch.cat(self.found[0]), torch.cat(self.found[1])


def _collect(network: nn.Module, paths: Iterable[str], images: Iterable[Tensor], count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Patches of every convolution's input, from one pass over ``images``."""
    per_image = -(-PATCHES * HELD_OUT // (count * (HELD_OUT - 1)))
    samplers = {path: _Sampler(number, per_image) for number, path in enumerate(paths)}
    watch(network, samplers, images)
    return {path: sampler.patches() for path, sampler in samplers.items()}
