"""Are a network's zeros exactly its scheme's? Imports torch, errors, masks and rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.errors import UsageError
from stages.schemes.masks import PATTERNS, class_rows, filter_classes, masks_of, spread
from stages.schemes.rules import PATTERN_RATE, kept_count, kept_units
from stages.schemes.scheme import PATTERN_WEIGHTS, LayerScheme, Scheme

HINT = "Prune the network with prune_ or 'npas search-pruner' for this very scheme."


def check_zeros(network: nn.Module | Mapping[str, Tensor], scheme: Scheme, masks: Mapping[str, Tensor] | None = None) -> None:
    """Raise UsageError, with the layer's name, unless every mask has its scheme's structure and counts and every weight outside the masks is exactly 0.

    ``network`` is a module or a state_dict. Without ``masks`` the largest weights are taken to be those that stay, so any other non-zero weight is an error.
    A weight inside a mask may be 0 by chance.
    """
    tensors = network.state_dict() if isinstance(network, nn.Module) else network
    if masks is None:
        unsure = {path: layer for path, layer in scheme.layers.items() if not _surely_fits(tensors.get(f"{path}.weight"), layer)}
        scheme = Scheme(unsure, scheme.coupled)
        masks = masks_of(tensors, scheme)
    classes = [(class_rows(tensors, members), rate) for members, rate in filter_classes(scheme)]
    blocks = {f"{path}.weight": layer for path, layer in scheme.layers.items() if layer.pruning not in ("none", "filter")}
    wanted = {*blocks, *(name for rows, _ in classes for name in rows)}
    for name in sorted(wanted ^ set(masks)):
        _fail(name, "has no mask" if name in wanted else "has a mask, but its scheme is dense")
    for name, mask in masks.items():
        _check_outside(name, tensors, mask)
    for name, layer in blocks.items():
        _check_blocks(name, masks[name], layer)
    for rows, rate in classes:
        _check_class(rows, masks, rate)
    _check_others(masks, [rows for rows, _ in classes])


def _surely_fits(weight: Tensor | None, layer: LayerScheme) -> bool:
    """Whether no group of a layer pruned by positions has weights at more positions than it may keep: then the largest are all of them. Much quicker than ranking them."""
    if weight is None or layer.pruning not in ("block-punched", "block-based"):
        return False
    rows, columns, *_ = weight.shape
    occupied = (weight != 0).reshape(rows, columns, -1)
    if rows % layer.block or columns % layer.channels:
        occupied = nn.functional.pad(occupied, (0, 0, 0, -columns % layer.channels, 0, -rows % layer.block))
    units = occupied.view(-(-rows // layer.block), layer.block, -(-columns // layer.channels), layer.channels, occupied.shape[2]).any(1).any(2)
    return bool((units.flatten(1).sum(1) <= kept_units(layer, weight.shape)).all())


def _fail(name: str, problem: str) -> None:
    raise UsageError(f"Layer '{name.rpartition('.')[0]}' {problem} ({name}).", HINT)


def _check_outside(name: str, tensors: Mapping[str, Tensor], mask: Tensor) -> None:
    if name not in tensors or mask.shape != tensors[name].shape or mask.dtype != torch.bool:
        _fail(name, "has a mask that doesn't fit its weights")
    count = int(torch.count_nonzero(tensors[name].masked_fill(mask, 0)))
    if count:
        _fail(name, f"has {count} weights outside its mask that are not zero")


def _check_blocks(name: str, mask: Tensor, layer: LayerScheme) -> None:
    leaders = mask[:: layer.block, :: layer.channels].flatten(1).contiguous()  # one weight of each unit
    if not torch.equal(spread(leaders, mask, layer.block, layer.channels), mask):
        _fail(name, f"keeps different positions in filters{' or channels' if layer.channels > 1 else ''} of one block of {layer.size}")
    units = leaders.view(len(leaders), -1, 9).any(-1) if layer.pruning == "pattern" else leaders
    wanted = kept_units(layer, mask.shape)
    if not bool((units.sum(1) == wanted).all()):
        _fail(name, f"keeps other than the {wanted} {'kernels' if layer.pruning == 'pattern' else 'positions'} per group that {layer.label} means")
    if layer.pruning == "pattern":
        _check_patterns(name, leaders.view(-1, 9))


def _check_patterns(name: str, kernels: Tensor) -> None:
    found = kernels[kernels.any(1)].unique(dim=0)
    if len(found) > PATTERNS or not bool((found[:, 4] & (found.sum(1) == PATTERN_WEIGHTS)).all()):
        _fail(name, f"keeps kernels that are not the centre and {PATTERN_WEIGHTS - 1} more in at most {PATTERNS} patterns (rates from {PATTERN_RATE:g})")


def _check_class(rows: Mapping[str, slice | list[int]], masks: Mapping[str, Tensor], rate: float) -> None:
    first = next(iter(rows))
    keep = masks[first][rows[first]].reshape(len(masks[first][rows[first]]), -1).any(1)
    for name, own in rows.items():
        mask = masks[name][own]
        if not torch.equal(mask, keep.view(-1, *[1] * (mask.ndim - 1)).expand_as(mask)):
            _fail(name, f"keeps other channels than '{first}', with which it is coupled")
    if int(keep.sum()) != kept_count(len(keep), rate):
        _fail(first, f"keeps {int(keep.sum())} channels, not the {kept_count(len(keep), rate)} that rate {rate:g} means")


def _check_others(masks: Mapping[str, Tensor], classes: Sequence[Mapping[str, slice | list[int]]]) -> None:
    """Channels of no class that shrinks lose nothing, even where others of the same layer do."""
    for name in {name for rows in classes for name in rows}:
        free = torch.ones(len(masks[name]), dtype=torch.bool)
        for rows in classes:
            if name in rows:
                free[rows[name]] = False
        if not bool(masks[name][free].all()):
            _fail(name, "loses channels that stay")
