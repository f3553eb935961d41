"""Which weights stay: one-shot masks of each scheme, from tensors alone. Imports torch, errors, rules and scheme values.

A mask is a bool tensor of its weight's shape, True where the weight stays. What stays is what matters most: by magnitude, or by the importance of each weight that the caller gives
(never negative; a unit's importance is the sum of its weights'). Everything is deterministic: equal scores keep the first unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from stages.errors import UsageError
from stages.graph.channels import places
from stages.schemes.rules import kept_count, kept_units
from stages.schemes.scheme import LayerScheme, Scheme

PATTERNS = 8  # patterns per layer (PatDNN section 4: 6 to 8 keep the accuracy)
PRODUCERS = ("conv2d", "linear")  # kinds of module that make new channels; the others of a class pass them on
_POSITIONS = [(4, *rest) for rest in combinations((0, 1, 2, 3, 5, 6, 7, 8), 3)]  # the centre and three more: 56 candidates
CANDIDATES = torch.zeros(len(_POSITIONS), 9, dtype=torch.bool).scatter_(1, torch.tensor(_POSITIONS), True)


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest of each row of ``scores`` (rows, n); the first of equals wins."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def blocked(values: Tensor, block: int, channels: int = 1) -> Tensor:
    """(O, I, ...) as (groups of ``block`` filters, block, groups of ``channels`` input channels, channels, kernel positions), filled up with zeros."""
    flat = values.reshape(*values.shape[:2], -1)
    padded = nn.functional.pad(flat, (0, 0, 0, -flat.shape[1] % channels, 0, -flat.shape[0] % block))
    return padded.reshape(padded.shape[0] // block, block, padded.shape[1] // channels, channels, padded.shape[2])


def group_sums(values: Tensor, block: int, channels: int = 1) -> Tensor:
    """The sum over each unit: a position over ``block`` consecutive filters and ``channels`` consecutive input channels; the last of either may be fewer.

    (O, I, ...) -> (groups of filters, units), float64; units in the order (block of channels, row, column).
    """
    return blocked(values.detach().double(), block, channels).sum((1, 3)).flatten(1)


def group_energy(weight: Tensor, block: int, channels: int = 1) -> Tensor:
    """Squared L2 norm of each unit, as ``group_sums`` has them."""
    return group_sums(weight.detach().double().square(), block, channels)


def spread(keep: Tensor, weight: Tensor, block: int, channels: int = 1) -> Tensor:
    """(groups, units) -> the weight's shape: every filter and every channel of a unit is kept, or none."""
    columns = keep.view(len(keep), -(-weight.shape[1] // channels), -1).repeat_interleave(channels, 1)[:, : weight.shape[1]]
    return columns.repeat_interleave(block, 0)[: weight.shape[0]].reshape(weight.shape).contiguous()


def position_mask(weight: Tensor, rate: float, block: int, channels: int = 1, scores: Tensor | None = None) -> Tensor:
    """Block-punched (NPAS section 4.1) and, on a matrix, block-based: each group keeps ``kept_count(units, rate)`` units, those of the largest L2 norm (or sum of ``scores``)."""
    energy = group_energy(weight, block, channels) if scores is None else group_sums(scores, block, channels)
    return spread(top_mask(energy, kept_count(energy.shape[1], rate)), weight, block, channels)


def mine_patterns(energy: Tensor) -> Tensor:
    """The patterns of a layer: of the 56 candidates, the PATTERNS that are the best one of most kernels. ``energy`` is (kernels, 9); returns bool (PATTERNS, 9).

    Best means the largest kept energy (PatDNN, Niu et al. 2020, section 4.1). Kernels that are all zero have no say.
    """
    candidates = CANDIDATES.to(energy.device)
    best = (energy @ candidates.to(energy.dtype).T).argmax(1)[energy.amax(1) > 0]
    votes = torch.bincount(best, minlength=len(candidates))
    return candidates[votes.argsort(descending=True, stable=True)[:PATTERNS]]


def pattern_mask(weight: Tensor, rate: float, block: int, scores: Tensor | None = None) -> Tensor:
    """Pattern and connectivity pruning of (O, I, 3, 3), shared by the filters of a block: each group keeps ``round(I * 2.25 / rate)`` kernels, each with its best pattern of the layer's.

    Best is the largest energy, or the largest sum of ``scores``.
    """
    energy = (group_energy(weight, block) if scores is None else group_sums(scores, block)).view(-1, weight.shape[1], 9)
    patterns = mine_patterns(energy.view(-1, 9))
    score, best = (energy @ patterns.to(energy.dtype).T).max(-1)
    kernels = top_mask(score, kept_units(LayerScheme("keep", "pattern", rate, block), weight.shape))
    return spread((patterns[best] & kernels[..., None]).flatten(1), weight, block)


def filter_classes(scheme: Scheme) -> Iterator[tuple[Mapping[str, str], float]]:
    """Each channel class that shrinks, with its rate: all its producers are filter-pruned, the largest of their rates counts. UsageError for a filter-pruned layer of no class."""
    wanted = {path for path, layer in scheme.layers.items() if layer.pruning == "filter"}
    homeless = sorted(wanted - {path for members in scheme.coupled for path in producers(members)})
    if homeless:
        raise UsageError(
            f"Layer '{homeless[0]}' can't be pruned by filters: its output channels belong to no class that may shrink.",
            "Take another scheme for it, or make the scheme from the traced graph.",
        )
    for members in scheme.coupled:
        made = producers(members)
        if made and wanted.issuperset(made):
            yield members, max(scheme[path].rate for path in made)


def producers(members: Mapping[str, str]) -> list[str]:
    """The modules of a class that make its channels."""
    return [path for path, member in members.items() if member.split()[0] in PRODUCERS]


def channel_scores(tensors: Mapping[str, Tensor], members: Mapping[str, str], scores: Mapping[str, Tensor] | None = None) -> Tensor:
    """What each channel (C,) of a class is worth: the sum of its producers' filter L2 norms, or of the ``scores`` of all its weights."""
    if scores is None:
        return torch.stack([tensors[f"{path}.weight"][rows_of(members[path])].detach().double().flatten(1).norm(dim=1) for path in producers(members)]).sum(0)
    own = [scores[name][rows].double() for name, rows in class_rows(tensors, members).items() if name in scores]
    return torch.stack([part.reshape(len(part), -1).sum(1) for part in own]).sum(0)


def channel_mask(tensors: Mapping[str, Tensor], members: Mapping[str, str], rate: float, scores: Mapping[str, Tensor] | None = None) -> Tensor:
    """The channels (C,) that a class keeps: those that are worth most."""
    worth = channel_scores(tensors, members, scores)
    return top_mask(worth[None], kept_count(len(worth), rate))[0]


def rows_of(member: str) -> slice | list[int]:
    """The rows of a module's tensors that belong to a class, as an index: "batch_norm 64:96" -> [64, ..., 95]."""
    rows = places(member)[1]
    return slice(None) if rows is None else rows


def class_rows(tensors: Mapping[str, Tensor], members: Mapping[str, str]) -> dict[str, slice | list[int]]:
    """The tensors that lose rows with a class, weights and biases of its convolutions, depthwise layers and batch norms, and which rows are its channels, in order."""
    return {name: rows_of(member) for path, member in members.items() for name in (f"{path}.weight", f"{path}.bias") if name in tensors}


def mask_class(masks: dict[str, Tensor], tensors: Mapping[str, Tensor], members: Mapping[str, str], keep: Tensor) -> None:
    """Add to ``masks`` that a class keeps the channels ``keep`` (C,), and loses the others behind every one of its layers. The consumers' weights are left alone."""
    for name, rows in class_rows(tensors, members).items():
        mask = masks.setdefault(name, torch.ones_like(tensors[name], dtype=torch.bool))
        mask[rows] = keep.view(-1, *[1] * (mask.ndim - 1))


def masks_of(tensors: Mapping[str, Tensor], scheme: Scheme, scores: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """``make_masks`` on the tensors of a state_dict (or on ADMM's W + U): the scheme is taken to be legal."""
    masks: dict[str, Tensor] = {}
    for path, layer in scheme.layers.items():
        name = f"{path}.weight"
        given = None if scores is None or layer.pruning in ("none", "filter") else scores[name]
        if layer.pruning == "pattern":
            masks[name] = pattern_mask(tensors[name], layer.rate, layer.block, given)
        elif layer.pruning in ("block-punched", "block-based"):
            masks[name] = position_mask(tensors[name], layer.rate, layer.block, layer.channels, given)
    for members, rate in filter_classes(scheme):
        mask_class(masks, tensors, members, channel_mask(tensors, members, rate, scores))
    return masks
