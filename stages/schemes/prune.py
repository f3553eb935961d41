"""A scheme on a module: check it, make its masks, apply them. Imports torch, errors, masks and rules."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.errors import UsageError
from stages.schemes.masks import masks_of
from stages.schemes.rules import why_illegal
from stages.schemes.scheme import LayerScheme, Scheme


def check_scheme(module: nn.Module, scheme: Scheme) -> None:
    """UsageError that names the layer when ``scheme`` names an unknown one or prunes one as it can't be pruned."""
    modules = dict(module.named_modules())
    for path in [*scheme.layers, *(path for members in scheme.coupled for path in members)]:
        if path not in modules:
            close = difflib.get_close_matches(path, modules, 1)
            raise UsageError(
                f"The scheme names the layer '{path}', which the network doesn't have.",
                f"Did you mean '{close[0]}'?" if close else "Make the scheme for this network.",
            )
    for path, layer in scheme.layers.items():
        reason = _why_illegal(modules[path], layer)
        if reason:
            raise UsageError(f"Layer '{path}' can't be pruned by '{layer.label}': {reason}.", "Take another scheme for it; legal_schemes lists them.")


def _why_illegal(module: nn.Module, scheme: LayerScheme) -> str:
    if scheme.pruning == "none":
        return ""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.ConvTranspose2d | nn.Embedding) or not isinstance(weight, Tensor) or weight.ndim not in (2, 4):
        return f"a {type(module).__name__} stays dense"
    return why_illegal(scheme, weight.shape, getattr(module, "groups", 1))


def make_masks(module: nn.Module, scheme: Scheme, scores: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """One-shot masks: name in the state_dict -> bool tensor of the same shape, True where a weight stays.

    By magnitude, positions are scored by their L2 norm over a group's filters, channels by their filters' L2 norms summed over the class. ``scores`` (the importance of each weight, from 0,
    by name) takes its place: a position or a channel then counts as the sum over its weights. Filter pruning also masks biases, depthwise weights and batch norms of the class, so that pruned
    channels are exactly 0. Layers that stay dense have no mask. UsageError names a layer that is unknown or can't be pruned so.
    """
    check_scheme(module, scheme)
    return masks_of(module.state_dict(), scheme, scores)


@torch.no_grad()
def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what the masks exclude to exactly +0, in place."""
    tensors = module.state_dict()
    for name, mask in masks.items():
        tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)


def prune_(module: nn.Module, scheme: Scheme) -> dict[str, Tensor]:
    """One-shot magnitude pruning in place; returns the masks. Example: ``prune_(network, uniform_scheme(trace(network, x), "block-punched", 3.0))``."""
    masks = make_masks(module, scheme)
    apply_masks(module, masks)
    return masks
