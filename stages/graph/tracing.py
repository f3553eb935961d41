"""trace: a network, seen once by torch.export, becomes a Graph. For analysis only: an exported module can't be trained again, so every Layer remembers its module. Imports torch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import UsageError
from stages.graph import operators
from stages.graph.layer import Graph, Layer


def trace(module: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Graph:
    """The Graph of ``module`` in eval mode for inputs of the shapes of ``example`` (batch included). ``module`` itself is left as it was.

    Operators that no rule knows become layers with op "unsupported"; whether that matters is for the caller to say. Raises UsageError when torch.export can't follow the network.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    with _eval_mode(module), torch.no_grad():
        try:
            program = torch.export.export(module, inputs, strict=False)
        except Exception as error:  # torch.export raises many kinds
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            hint = "Its forward() may branch on tensor values or expect another input shape; torch.export.export(model, example) must work."
            raise UsageError(f"The network can't be traced: {reason}", hint) from error
    return _Tracer(module, program).graph()


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    training = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, flag in training:
            m.training = flag


class _Tracer:
    def __init__(self, module: nn.Module, program: Any):
        self.program = program
        self.children = {name: any(True for _ in m.children()) for name, m in module.named_modules()}
        signature = program.graph_signature
        tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        names = _first_names(module)
        self.tensors = {placeholder: names.get(name, name) for placeholder, name in tensors.items()}
        self.constant_names = set(signature.inputs_to_lifted_tensor_constants.values())
        self.layers: list[Layer] = []
        self.alias: dict[Any, str] = {}  # fx node -> name of the layer that makes its value
        self.parts: dict[Any, list[Any]] = {}  # fx node with several results (chunk, split) -> per result (source, slice attrs)
        self.names: set[str] = set()
        self.constants: dict[str, Any] = {}

    def graph(self) -> Graph:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = tuple(self._source(n) for n in node.args[0] if isinstance(n, torch.fx.Node))
        return Graph(tuple(self.layers), outputs, self.constants)

    def _placeholder(self, node: Any) -> None:
        if node.name not in self.tensors:
            self._add(node, Layer(self._unique(node.name), "input", (), operators.shape_of(node)))

    def _source(self, node: Any) -> str:
        """Name of the layer that makes a node's value; parameters used as plain operands become constant layers."""
        if node not in self.alias:
            tensor = self.tensors[node.name]
            if tensor in self.constant_names:
                self.constants[tensor] = self.program.constants[tensor].detach().cpu().numpy()
            self._add(node, Layer(self._unique(tensor), "constant", (), operators.shape_of(node), params={"value": tensor}))
        return self.alias[node]

    def _call(self, node: Any) -> None:
        if node.target is operator.getitem:
            self._part(node)
            return
        name = _name_of(node)
        if name in operators.IGNORED:
            return
        args = _arguments(node)
        if name in operators.IDENTITIES and (name != "dropout" or not args.get("train")):
            self.alias[node] = self._source(node.args[0])
        elif name in ("chunk", "split", "split_with_sizes"):
            self._split(node, args)
        elif name not in operators.FIRST_OF_SEVERAL:
            rule = operators.RULES.get(name)
            found = rule(args) if rule is not None and isinstance(node.meta.get("val"), Tensor) else None
            self._layer(node, found)

    def _layer(self, node: Any, found: operators.Canonical | None) -> None:
        module = _module_of(node)
        if found is None or any(p is not None and p.name not in self.tensors for p in found[3].values()):
            operands = [n for n in node.all_input_nodes if n.name not in self.tensors or n in self.alias]
            found = ("unsupported", operands, {}, {})
        op, operands, attrs, roles = found
        params = {role: self.tensors[p.name] for role, p in roles.items() if p is not None}
        shape = operators.shape_of(node) if isinstance(node.meta.get("val"), Tensor) else ()
        if op == "reshape":
            attrs = {"shape": shape}
        weight = params.get("weight") or params.get("running_mean")
        if weight:
            module = weight.rpartition(".")[0]
        macs = 0
        if op in ("conv2d", "linear"):
            macs = math.prod(shape) * math.prod(operators.shape_of(roles["weight"])[1:])
        sources = tuple(self._source(n) for n in operands)
        self._add(node, Layer(self._name(node, module, bool(weight)), op, sources, shape, attrs, params, module, str(node.target), macs))

    def _split(self, node: Any, args: operators.Args) -> None:
        source = args["self"]
        dim = args["dim"] % operators.rank_of(source)
        start = 0
        self.parts[node] = []
        for value in node.meta["val"]:
            stop = start + int(value.shape[dim])
            self.parts[node].append((source, {"dim": dim, "start": start, "stop": stop, "step": 1}))
            start = stop

    def _part(self, node: Any) -> None:
        parent, index = node.args
        name = _name_of(parent)
        if name in operators.FIRST_OF_SEVERAL and index == 0:
            self._layer(node, operators.RULES[name](_arguments(parent)))
            return
        if parent not in self.parts:
            if node.users:
                sources = tuple(self._source(n) for n in ([parent] if parent in self.alias else parent.all_input_nodes))
                self._add(
                    node, Layer(self._unique(f"{_module_of(node)}:{node.name}"), "unsupported", sources, operators.shape_of(node), target=str(parent.target))
                )
            return
        source, attrs = self.parts[parent][index]
        module = _module_of(parent)
        self._add(
            node,
            Layer(
                self._unique(f"{module}:{node.name}"),
                "slice",
                (self._source(source),),
                operators.shape_of(node),
                attrs,
                module=module,
                target=str(parent.target),
            ),
        )

    def _name(self, node: Any, module: str, has_weight: bool) -> str:
        owner = has_weight or (module and not self.children.get(module, True) and not self._owns_weights(module))
        return self._unique(module if owner and module else f"{module}:{node.name}")

    def _owns_weights(self, module: str) -> bool:
        return any(name.rpartition(".")[0] == module for name in self.tensors.values())

    def _unique(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.names:
            count += 1
            name = f"{wanted}:{count}"
        self.names.add(name)
        return name

    def _add(self, node: Any, layer: Layer) -> None:
        self.layers.append(layer)
        self.alias[node] = layer.name


def _first_names(module: nn.Module) -> dict[str, str]:
    """For each name of a parameter or buffer, the first one: a module that is a child of two others has two, and torch.export takes any."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _arguments(node: Any) -> dict[str, Any]:
    """Arguments of an aten call by schema name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return dict(node.kwargs)
    values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    values.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    return values | dict(node.kwargs)


def _name_of(node: Any) -> str:
    """An operator's name without overload, in-place ones like the others."""
    return str(getattr(node.target, "_opname", str(node.target))).removesuffix("_")


def _module_of(node: Any) -> str:
    """Path of the innermost module that made the call ("" is the network itself)."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else ""
