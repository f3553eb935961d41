"""Edit the calls that one nn.Module makes itself, through torch.fx, so that it can still be trained, copied and saved. Imports errors only of npas, and torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from stages.errors import UsageError

CALLS: dict[str, tuple[Any, ...]] = {  # operation -> the functions and (as text) Tensor methods that compute it
    "silu": (F.silu,),
    "mish": (F.mish,),
    "gelu": (F.gelu,),
    "sigmoid": (torch.sigmoid, F.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"),
    "tanh": (torch.tanh, F.tanh, torch.tanh_, "tanh", "tanh_"),
    "softplus": (F.softplus,),
    "elu": (F.elu, F.elu_),
}
PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
LEAKY_SLOPE = 0.1
HARD_CALLS: dict[
    str, tuple[Callable[..., Any], dict[str, Any], Callable[..., nn.Module]]
] = {  # operation -> function, its extra arguments, the module that does the same
    "hardswish": (F.hardswish, {}, nn.Hardswish),
    "hardsigmoid": (F.hardsigmoid, {}, nn.Hardsigmoid),
    "hardtanh": (F.hardtanh, {}, nn.Hardtanh),
    "relu": (F.relu, {}, nn.ReLU),
    "leaky_relu": (F.leaky_relu, {"negative_slope": LEAKY_SLOPE}, nn.LeakyReLU),
}
Change = tuple[str, str, int]  # operation before, operation after, which call of it


class _OwnCalls(fx.Tracer):
    """Records what a module itself does; its children stay calls of modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def edit_module(module: nn.Module, path: str, changes: Sequence[Change], sole: bool) -> nn.Module:
    """``module`` (found at ``path`` of the network) with its calls changed: the same object with another forward, or an activation module if it was a wrapper of one.

    Train and eval mode are edited apart, so that F.dropout(x, training=self.training) and branches on self.training survive. ``sole`` tells that the module does nothing but the changed
    operation; then it may be exchanged even if torch.fx can't follow it (autograd functions). UsageError when torch.fx can't follow it otherwise.
    """
    try:
        graphs = {mode: _own_calls(module, mode) for mode in (False, True)}
    except Exception as error:  # torch.fx raises many kinds, and so may the user's forward
        if sole and not list(module.children()) and not module.state_dict():
            return _activation(changes[0][1], False).train(module.training)
        name = f"'{path}' ({type(module).__name__})" if path else f"itself ({type(module).__name__})"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"Module {name} computes {changes[0][0]} in a way that can't be edited: {reason}", "Use nn.SiLU, nn.Sigmoid and the like as submodules there."
        ) from error
    calls = {before: len(_sites(graphs[False], before)) for before, _, _ in changes}
    for graph in graphs.values():
        _change(graph, changes, calls, path)
    wrapped = [_wrapped(graph) for graph in graphs.values()]
    if wrapped[0] is not None and wrapped[0] == wrapped[1] and not module.state_dict() and not list(module.children()):
        return _activation(*wrapped[0]).train(module.training)
    return _with_forward(module, {mode: _function(graph, path) for mode, graph in graphs.items()})


def _own_calls(module: nn.Module, training: bool) -> fx.Graph:
    """The module's forward in one mode; the children's modes don't matter, for they are leaves."""
    before = module.training
    module.training = training
    try:
        return _OwnCalls().trace(module)
    finally:
        module.training = before


def _sites(graph: fx.Graph, op: str) -> list[fx.Node]:
    """The nodes that compute ``op``, in order; for "swish" the products x * sigmoid(x), which are no sites of "sigmoid"."""
    if op not in ("swish", "sigmoid"):
        return [node for node in graph.nodes if _is_call(node, CALLS[op])]
    pairs = [(node, _product(node)) for node in graph.nodes if _is_call(node, CALLS["sigmoid"])]
    return [product for _, product in pairs if product is not None] if op == "swish" else [node for node, product in pairs if product is None]


def _is_call(node: fx.Node, targets: Sequence[Any]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _product(node: fx.Node) -> fx.Node | None:
    """The multiplication of a sigmoid's result by its argument, when that is its only use."""
    users = list(node.users)
    if len(users) != 1 or not _is_call(users[0], PRODUCTS):
        return None
    return users[0] if {node, _argument(node)} == set(users[0].args) else None


def _argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _inplace(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace", False)) or name in ("imul", "__imul__") or (name.endswith("_") and not name.endswith("__"))


def _change(graph: fx.Graph, changes: Sequence[Change], calls: Mapping[str, int], path: str) -> None:
    """Edit ``graph``. ``calls`` are the calls per operation in eval mode, the mode that ``changes`` count in; a module that runs n times shows each of them n times."""
    sites = {op: _sites(graph, op) for op in calls}
    for before, after in dict.fromkeys((before, after) for before, after, _ in changes):
        chosen = {call % calls[before] for b, _, call in changes if b == before} if calls[before] else set()
        if not chosen or (len(sites[before]) != calls[before] and len(chosen) != calls[before]):
            raise UsageError(f"The calls of {before} in module '{path}' can't be told apart.", "Use nn.SiLU, nn.Sigmoid and the like as submodules there.")
        for index, node in enumerate(sites[before]):
            if index in chosen or len(chosen) == calls[before]:
                _replace(graph, node, before, after)
    graph.lint()


def _replace(graph: fx.Graph, node: fx.Node, before: str, after: str) -> None:
    function, extra, _ = HARD_CALLS[after]
    argument = _argument(node)
    if before == "swish":  # the product's other operand is the sigmoid
        argument = next(a for a in node.args if not (isinstance(a, fx.Node) and _is_call(a, CALLS["sigmoid"]) and _product(a) is node))
    with graph.inserting_before(node):
        made = graph.call_function(function, (argument,), extra | ({"inplace": True} if _inplace(node) else {}))
    node.replace_all_uses_with(made)
    spent = [a for a in node.args if isinstance(a, fx.Node)]
    graph.erase_node(node)
    for operand in spent:
        if not operand.users and _is_call(operand, CALLS["sigmoid"]):
            graph.erase_node(operand)


def _wrapped(graph: fx.Graph) -> tuple[str, bool] | None:
    """(operation, in place) when the graph returns one hard activation of its only argument."""
    nodes = list(graph.nodes)
    if [n.op for n in nodes] != ["placeholder", "call_function", "output"] or nodes[1].args != (nodes[0],) or nodes[2].args != (nodes[1],):
        return None
    names = [name for name, (function, _, _) in HARD_CALLS.items() if nodes[1].target is function]
    return (names[0], bool(nodes[1].kwargs.get("inplace", False))) if names else None


def _activation(op: str, inplace: bool) -> nn.Module:
    _, extra, make = HARD_CALLS[op]
    return make(**extra, inplace=inplace)


def _function(graph: fx.Graph, path: str) -> tuple[str, Callable[..., Any]]:
    """Source and compiled forward of a graph."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<npas edit of {path or 'the network'}>", "exec"), namespace)  # noqa: S102 - torch.fx writes the source, as in fx.GraphModule
    return code.src, namespace["forward"]


def _with_forward(module: nn.Module, functions: Mapping[bool, tuple[str, Callable[..., Any]]]) -> nn.Module:
    """The same object, its parameters, children and hooks untouched, with the forward of its mode."""
    (eval_source, in_eval), (train_source, in_train) = functions[False], functions[True]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (in_train if self.training else in_eval)(self, *args, **kwargs)

    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), {"forward": in_eval if eval_source == train_source else forward, "__module__": cls.__module__})
    return module
