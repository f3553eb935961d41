"""Phase 1 as values and edits: which activations need exponentials, and the network without them. Imports errors and graph only of npas, and torch.

``find_replacements`` reads the traced Graph, so it does not matter whether a swish is an nn.SiLU, F.silu(x), x * x.sigmoid() or a class of the user's. ``apply_replacements`` edits the
nn.Modules that made those calls, because a traced network can't be trained. It needs no tracing of the whole network, so a saved list can be replayed onto a fresh network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from stages.errors import UsageError
from stages.graph.edit import edit_module
from stages.graph.layer import Graph, Layer

HARD = {  # exponential activation -> the piecewise-linear one (or its product with x) that stands in for it (Howard et al. 2019, MobileNetV3, section 5.2)
    "silu": "hardswish",
    "swish": "hardswish",  # x * sigmoid(x), written out
    "mish": "hardswish",
    "gelu": "hardswish",
    "sigmoid": "hardsigmoid",
    "tanh": "hardtanh",
    "softplus": "relu",
    "elu": "leaky_relu",
}
EXPONENTIAL = ("exp", "softmax", "sigmoid", "tanh", "elu", "logsumexp", "erf", "sinh", "cosh")  # parts of the names of operators that need exponentials


@dataclass(frozen=True)
class Replacement:
    """One call to replace: ``Replacement("features.1.0:silu", "features.1.0", "silu", "hardswish", call=0, sole=False)``.

    ``layer`` is the call's name in the Graph and ``module`` the path of the module that made it. ``call`` counts the module's own calls of this operation, in order, from 0 (a module that
    is used several times goes on counting). ``sole``: the module makes no other call.
    """

    layer: str
    module: str
    before: str
    after: str
    call: int = 0
    sole: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data for model.pt and graph.json."""
        return asdict(self)

    @staticmethod
    def from_json(d: dict[str, Any]) -> Replacement:
        """The inverse of to_json."""
        return Replacement(d["layer"], d["module"], d["before"], d["after"], int(d.get("call", 0)), bool(d.get("sole", False)))


def find_replacements(graph: Graph) -> tuple[Replacement, ...]:
    """Every call with a hard version, in order; what makes the network's output is left (a hard sigmoid would tie the scores of sure answers)."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for layer in graph:
        op = _kind(graph, layer)
        if op not in HARD:
            continue
        call = counts[layer.module, op] = counts.get((layer.module, op), -1) + 1
        if not _is_output(graph, layer):
            found.append(Replacement(layer.name, layer.module, op, HARD[op], call, _sole(graph, layer, op)))
    return tuple(found)


def exponentials_left(graph: Graph) -> tuple[Layer, ...]:
    """The layers that still need exponentials: what has no hard version (softmax), and what makes the output."""
    return tuple(x for x in graph if x.op in HARD or x.op == "softmax" or (x.op == "unsupported" and any(part in _operator(x) for part in EXPONENTIAL)))


def apply_replacements(module: nn.Module, replacements: Iterable[Replacement]) -> nn.Module:
    """Make the replacements in ``module`` and return it (another object only when the network itself is a single activation). Names in its state_dict stay.

    A module that merely wraps the activation is exchanged for nn.Hardswish and the like, everywhere that it is used; in others, the calls are edited in their torch.fx form, in train and in
    eval mode each. UsageError names a module that is missing or that torch.fx can't follow.
    """
    groups: dict[int, tuple[nn.Module, list[Replacement]]] = {}
    for r in replacements:
        owner = _submodule(module, r)
        groups.setdefault(id(owner), (owner, []))[1].append(r)
    for owner, wanted in groups.values():
        made = edit_module(owner, wanted[0].module, [(r.before, r.after, r.call) for r in wanted], all(r.sole for r in wanted))
        if owner is module:
            module = made
        elif made is not owner:
            _exchange(module, owner, made)
    return module


def _submodule(module: nn.Module, r: Replacement) -> nn.Module:
    try:
        return module.get_submodule(r.module)
    except AttributeError:
        raise UsageError(
            f"The network has no module '{r.module}', in which {r.before} was to become {r.after}.",
            "The network has changed since: run 'npas replace-ops' again.",
        ) from None


def _exchange(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is a child (one activation object may be shared by many blocks)."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _kind(graph: Graph, layer: Layer) -> str:
    """The layer's op; "swish" for a sigmoid that is only multiplied by its own argument, in the same module."""
    return "swish" if layer.op == "sigmoid" and _product(graph, layer) is not None else layer.op


def _product(graph: Graph, layer: Layer) -> Layer | None:
    """The multiplication that completes x * sigmoid(x), if ``layer`` is such a sigmoid."""
    users = graph.consumers[layer.name]
    if len(users) != 1 or layer.name in graph.outputs:
        return None
    user = users[0]
    return user if user.op == "mul" and user.module == layer.module and sorted(user.inputs) == sorted((layer.name, *layer.inputs)) else None


def _is_output(graph: Graph, layer: Layer) -> bool:
    """Whether the network returns the layer's result, reshaped at most."""
    if layer.name in graph.outputs:
        return True
    return any(user.op in ("flatten", "reshape", "permute") and _is_output(graph, user) for user in graph.consumers[layer.name])


def _sole(graph: Graph, layer: Layer, op: str) -> bool:
    """Whether this operation is all that the module does."""
    mine = [x for x in graph if x.module == layer.module or x.module.startswith(f"{layer.module}.")]
    products = {p.name for x in mine if x.op == "sigmoid" and (p := _product(graph, x)) is not None} if op == "swish" else set()
    return layer.module != "" and all(_kind(graph, x) == op or x.name in products for x in mine)


def _operator(layer: Layer) -> str:
    """ "exp" of "aten.exp.default"."""
    parts = layer.target.split(".")
    return parts[1] if len(parts) > 1 else layer.target
