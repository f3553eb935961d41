"""Which scheme may prune which layer, and how much stays. Imports graph values, errors and scheme values only, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from stages.errors import UsageError
from stages.graph import Graph, Layer, channel_classes, couplings
from stages.schemes.scheme import DENSE, PATTERN_WEIGHTS, SCHEMES, LayerScheme, Scheme

CHANNEL_BLOCKED = ("block-punched", "block-based")  # schemes whose units may span several input channels
PATTERN_RATE = 9 / PATTERN_WEIGHTS  # 2.25: what the patterns alone remove; connectivity pruning removes the rest


def kept_count(n: int, rate: float) -> int:
    """How many of ``n`` units stay at ``rate``: ``max(1, round(n / rate))``, never more than n. Python's round: halves go to the even number."""
    return min(n, max(1, round(n / rate)))


def kept_units(scheme: LayerScheme, weight_shape: Sequence[int]) -> int:
    """What a pruned layer keeps: output channels (filter), kernels per group (pattern), units per group (block-punched, block-based)."""
    if scheme.pruning == "filter":
        return kept_count(weight_shape[0], scheme.rate)
    if scheme.pruning == "pattern":
        return kept_count(weight_shape[1], scheme.rate / PATTERN_RATE)
    return kept_count(-(-weight_shape[1] // scheme.channels) * math.prod(weight_shape[2:]), scheme.rate)


def why_illegal(scheme: LayerScheme, weight_shape: Sequence[int], groups: int = 1) -> str:
    """Why ``scheme`` can't prune a weight of this shape ((O, I, kh, kw) or (O, I)), as the end of a sentence; "" when it can."""
    if scheme.pruning not in SCHEMES:
        return f"there is no pruning scheme '{scheme.pruning}'"
    if scheme.pruning == "none":
        return ""
    if not (math.isfinite(scheme.rate) and scheme.rate >= 1):
        return f"its rate {scheme.rate:g} is below 1 or not finite"
    if groups != 1:
        return "depthwise and grouped convolutions stay dense"
    if scheme.pruning != "filter" and scheme.block < 1:
        return f"its block {scheme.block} is below 1"
    if scheme.channels < 1:
        return f"its blocks of {scheme.channels} input channels are below 1"
    if scheme.channels > 1 and scheme.pruning not in CHANNEL_BLOCKED:
        return f"blocks of input channels belong to {' and '.join(CHANNEL_BLOCKED)}"
    if scheme.pruning == "pattern" and (tuple(weight_shape[2:]) != (3, 3) or scheme.rate < PATTERN_RATE):
        return f"patterns need 3x3 kernels and a rate of at least {PATTERN_RATE:g}"
    if scheme.pruning == "block-punched" and len(weight_shape) != 4:
        return "block-punched prunes convolutions; a linear layer takes block-based"
    if scheme.pruning == "block-based" and len(weight_shape) != 2:
        return "block-based prunes linear layers; a convolution takes block-punched"
    return ""


def on_layer(pruning: str, rate: float, block: int, layer: Layer, channels: int = 1) -> LayerScheme:
    """The LayerScheme that ``pruning`` means on ``layer``: block-punched on a linear layer is block-based; filter has no block, and only block-punched and block-based have blocks of channels."""
    if pruning == "block-punched" and layer.op == "linear":
        pruning = "block-based"
    return LayerScheme("keep", pruning, float(rate), 0 if pruning == "filter" else block, channels if pruning in CHANNEL_BLOCKED else 1)


def _shrinkable(graph: Graph) -> set[str]:
    """Module paths of the layers whose output channels may be removed, at every call."""
    classes = channel_classes(graph)
    fixed = {layer.module for layer in graph.prunable} - {layer.module for layer in graph if layer.name in classes}
    fixed |= {layer.module for layer in graph if layer.name in classes and (classes[layer.name] < 0).any()}
    return {layer.module for layer in graph.prunable} - fixed


def _legal(scheme: LayerScheme, layer: Layer, shrinkable: set[str]) -> bool:
    may = scheme.pruning != "filter" or layer.module in shrinkable
    owned = layer.params.get("weight") == f"{layer.module}.weight"  # a mask needs a name in the state_dict
    return may and owned and not why_illegal(scheme, layer.weight_shape, layer.attrs.get("groups", 1))


def legal_schemes(
    layer: Layer, graph: Graph, schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int], channel_blocks: Sequence[int] = (1,)
) -> tuple[LayerScheme, ...]:
    """Every LayerScheme that may prune ``layer``, DENSE first, then in the order of ``schemes``, ``rates``, ``blocks``, ``channel_blocks``.

    "block-punched" means block-based on a linear layer; "filter" is left out where the layer's channels must all stay (the layer that makes the network's output is one).
    Of candidates that keep the same number of units in the same groups (a block that exceeds the filters, a rate that rounds alike) only the first stays, and none that prunes nothing.
    A layer that isn't prunable gets (DENSE,).
    """
    if not layer.is_prunable:
        return (DENSE,)
    shrinkable, found, seen = _shrinkable(graph), [DENSE], set()
    for scheme in _candidates(layer, schemes, rates, blocks, channel_blocks):
        if not _legal(scheme, layer, shrinkable):
            continue
        units = kept_units(scheme, layer.weight_shape)
        key = (scheme.pruning, min(scheme.block, layer.weight_shape[0]), min(scheme.channels, layer.weight_shape[1]), units)
        if key not in seen and (scheme.pruning == "pattern" or units < kept_units(replace(scheme, rate=1.0), layer.weight_shape)):
            found.append(scheme)
        seen.add(key)
    return tuple(found)


def resolve(scheme: Scheme, graph: Graph) -> Scheme:
    """``scheme``, which names the layers of the original network, for the network with its filter types, whose Graph is ``graph``: what prune_, check_zeros and compile_model take.

    Every prunable convolution within a replaced layer is pruned as that layer says, where that is legal (patterns prune no 1x1: such a part stays dense). Channel classes are those of ``graph``;
    a filter-pruned layer whose channels must now all stay (a skipped one joined them to the network's input, say) stays dense. A scheme without filter types comes back as it is.
    """
    types = scheme.filter_types
    if not types:
        return scheme
    shrinkable = _shrinkable(graph)
    resolved = {path: layer for path, layer in scheme.layers.items() if path not in types}
    for layer in graph.prunable:
        owner = layer.module.rpartition(".")[0] if layer.module.rpartition(".")[0] in types else layer.module
        wanted = replace(scheme[owner], filter_type="keep")
        resolved[layer.module] = wanted if _legal(wanted, layer, shrinkable) else DENSE
    return Scheme(resolved, couplings(graph))


def _candidates(layer: Layer, schemes: Sequence[str], rates: Sequence[float], blocks: Sequence[int], channel_blocks: Sequence[int]) -> Iterator[LayerScheme]:
    for pruning in schemes:
        for rate in rates if pruning != "none" else ():
            for block in blocks if pruning != "filter" else (0,):
                for channels in channel_blocks if pruning in CHANNEL_BLOCKED else (1,):
                    yield on_layer(pruning, rate, block, layer, channels)


def uniform_scheme(graph: Graph, pruning: str, rate: float, block: int = 8, channels: int = 1) -> Scheme:
    """Prune every layer where ``pruning`` is legal at the same ``rate``; the others stay dense.

    ``pruning`` is "none", "filter", "block-punched" (block-based on linear layers), "pattern" or "block-based" (linear layers alone). The first convolution takes part; depthwise and grouped ones stay
    dense. ``channels`` are the input channels per unit of block-punched and block-based. Raises UsageError for an unknown name, and for a rate or block that no layer can have.
    """
    if pruning not in SCHEMES:
        raise UsageError(f"There is no pruning scheme '{pruning}'.", f"Known: {', '.join(SCHEMES)}.")
    low = PATTERN_RATE if pruning == "pattern" else 1.0
    if not (math.isfinite(rate) and rate >= low):
        raise UsageError(f"{pruning} can't prune at rate {rate:g}.", f"Give a rate of at least {low:g}.")
    if pruning not in ("none", "filter") and block < 1:
        raise UsageError(f"{pruning} needs a block of at least 1, not {block}.", "8 is a good start.")
    if channels < 1 or (channels > 1 and pruning not in CHANNEL_BLOCKED):
        raise UsageError(f"{pruning} can't have blocks of {channels} input channels.", f"1, or more with {' or '.join(CHANNEL_BLOCKED)}.")
    shrinkable = _shrinkable(graph)
    wanted = {layer.module: on_layer(pruning, rate, block, layer, channels) for layer in graph.prunable}
    legal = {layer.module: wanted[layer.module] if pruning != "none" and _legal(wanted[layer.module], layer, shrinkable) else DENSE for layer in graph.prunable}
    return Scheme(legal, couplings(graph))
