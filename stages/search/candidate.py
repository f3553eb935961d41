"""One candidate of the search as a network: a copy that carries the scheme's structure, not yet pruned. Imports torch, graph and schemes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from stages.graph import Graph
from stages.schemes import Scheme


@dataclass(frozen=True)
class Candidate:
    """``module`` is a copy of its own, ``graph`` is what tracing it would give, ``scheme`` names the paths of this very module."""

    module: nn.Module
    graph: Graph
    scheme: Scheme


class Candidates:
    """Builds candidates from the network that is searched. The network is traced once: a candidate's graph is an edit of its graph."""

    def __init__(self, network: nn.Module, graph: Graph):
        self.network, self.graph = network, graph

    def build(self, scheme: Scheme) -> Candidate:
        """The candidate that ``scheme`` describes, in eval mode."""
        return Candidate(copy.deepcopy(self.network), self.graph, scheme)
