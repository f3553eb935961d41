"""The network as values: Layer, Graph, trace, and which channels belong together."""

from typing import Any

from stages.graph.channels import channel_classes, couplings
from stages.graph.filter_types import FILTER_TYPES, legal_types
from stages.graph.layer import ACTIVATIONS, Graph, Layer

__all__ = ["ACTIVATIONS", "FILTER_TYPES", "Graph", "Layer", "channel_classes", "couplings", "legal_types", "trace"]


def __getattr__(name: str) -> Any:
    if name == "trace":  # torch is imported only by those who trace
        from stages.graph.tracing import trace

        return trace
    raise AttributeError(name)
