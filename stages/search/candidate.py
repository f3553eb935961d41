"""One candidate of the search as a network: a copy that carries the scheme's filter types. Imports torch, config, graph, schemes and search/reconstruct."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from stages.config import SearchScheme
from stages.graph import Graph
from stages.graph.retype import replaceable, retype_
from stages.schemes import Scheme, apply_masks, make_masks, resolve
from stages.schemes.compensate import Reads, compensate_
from stages.schemes.grouping import regroup_
from stages.search.reconstruct import Reconstructed

NOTHING = Reconstructed()


@dataclass(frozen=True)
class Candidate:
    """``module`` is a copy of its own, ``graph`` is what tracing it would give, ``scheme`` names the paths of this very module.

    ``orders``: the channels that were reordered, see ``regroup_``. The module's weights are in that order; nothing else needs to know.
    """

    module: nn.Module
    graph: Graph
    scheme: Scheme
    orders: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Candidates:
    """Builds candidates from the network that is searched. The network is traced once: a candidate's graph is an edit of its graph.

    ``reconstructed`` holds the initial weights of the filter types; what it lacks is drawn at random, which will do where only latency counts. With ``grouping`` filters share blocks with those
    that they lose least with. By ``reads`` (what the network's layers read) the weights that pruning leaves make up for those that it takes. Latency depends on neither.
    """

    def __init__(self, network: nn.Module, graph: Graph, reconstructed: Reconstructed = NOTHING, grouping: bool = False, reads: Mapping[str, Reads] = {}):
        self.network, self.graph, self.reconstructed, self.grouping, self.reads = network, graph, reconstructed, grouping, reads

    def build(self, scheme: Scheme) -> Candidate:
        """The candidate that ``scheme`` describes (by the layers of the searched network), in eval mode. UsageError when a layer can't take its filter type."""
        module, types = copy.deepcopy(self.network), scheme.filter_types
        graph = retype_(module, self.graph, types) if types else self.graph
        for path, kind in types.items():
            if kind in self.reconstructed.tensors.get(path, ()):
                module.get_submodule(path).load_state_dict(self.reconstructed.tensors[path][kind])
        resolved = resolve(scheme, graph)
        return Candidate(module.eval(), graph, resolved, regroup_(module, graph, resolved) if self.grouping else {})

    def pruned(self, scheme: Scheme) -> tuple[Candidate, dict[str, Tensor]]:
        """The candidate, pruned by magnitude in one shot, and its masks."""
        built = self.build(scheme)
        masks = make_masks(built.module, built.scheme)
        if self.reads:
            compensate_(built.module, built.graph, built.scheme, masks, self.reads, built.orders)
        apply_masks(built.module, masks)
        return built, masks


def searched_types(network: nn.Module, graph: Graph, settings: SearchScheme) -> dict[str, tuple[str, ...]]:
    """Module path -> the filter types that the search may give it: what is possible, allowed by ``filter_types``, and worth it by ``min_share``. Layers that can only be kept are left out."""
    large = {layer.module for layer in graph.prunable if layer.macs >= settings.min_share * graph.macs}
    allowed = {path: tuple(k for k in kinds if k in settings.filter_types) for path, kinds in replaceable(network, graph).items() if path in large}
    return {path: kinds for path, kinds in allowed.items() if set(kinds) - {"keep"}}
