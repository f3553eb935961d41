"""A network to tune. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from stages.graph.layer import Graph
from stages.schemes.scheme import Scheme


@dataclass(frozen=True)
class Request:
    """A network to tune, as for compile_model: pruned to ``scheme`` already."""

    module: nn.Module
    example: Tensor | tuple[Tensor, ...]
    scheme: Scheme | None = None
    graph: Graph | None = None
