"""compile_model: a network and a scheme in, a checked shared library out. The order of the compiler's passes is this file. Imports torch."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from stages.compiler import cache, emit, toolchain
from stages.compiler.arrange import Resolutions, arrange, arranged
from stages.compiler.bands import fuse_bands
from stages.compiler.check import compare
from stages.compiler.cross import CrossModel, notes
from stages.compiler.fuse import fuse
from stages.compiler.gates import absorb_gates
from stages.compiler.ir import Layout, Program
from stages.compiler.kernels.kernel import Kernel
from stages.compiler.lower import lower
from stages.compiler.model import CompiledModel
from stages.compiler.pack import pack
from stages.compiler.plan import layouts, plan
from stages.compiler.pools import fuse_pools
from stages.compiler.select import select
from stages.compiler.share import share
from stages.compiler.shrink import shrink
from stages.compiler.split_k import split_inputs
from stages.compiler.target import CROSS, HOST, Target, resolve
from stages.compiler.tuning import database
from stages.compiler.tuning.signature import network
from stages.errors import UsageError
from stages.graph.layer import Graph
from stages.graph.tracing import trace
from stages.schemes.scheme import Scheme
from stages.schemes.verify import check_zeros

MOST_THREADS = 64
_NUMBER = 24  # characters of the longest number


def compile_model(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    scheme: Scheme | None = None,
    target: str = "host",
    threads: int = 1,
    *,
    graph: Graph | None = None,
    tolerance: float = 1e-3,
    check: bool = True,
) -> CompiledModel:
    """``module`` (in eval mode, float32) compiled for inputs shaped like ``example``; its weights are copied.

    ``target``: "host"; "android-arm64" or "linux-arm64", if need be with a processor to order instructions for ("android-arm64:cortex-a76"): such a model is a CrossModel, which can be saved but not called;
    it is checked in qemu where that is installed, and ``manifest["notes"]`` says what was left out. ``scheme`` names what each layer was pruned to: its masks must already be applied. ``graph`` saves the tracing when the network was traced before.
    The library runs on up to ``threads`` threads; they share the work of each layer. Raises UnsupportedOperator, UsageError (a weight outside the scheme isn't zero) and, with ``check``, WrongOutput (further than ``tolerance`` times the largest output from PyTorch).
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"Can't compile for {threads} threads.", f"Between 1 and {MOST_THREADS}.")
    build = Build(*prepare(module, example, scheme, graph), resolve(target), threads, target)
    model = build.link()
    return build.checked(model, module, tolerance) if check else model


def prepare(module: nn.Module, example: Tensor | tuple[Tensor, ...], scheme: Scheme | None, graph: Graph | None) -> tuple[Graph, dict[str, np.ndarray], Scheme]:
    """(the network's graph, its weights by name, the scheme that they fit); arguments as of compile_model. UsageError when they don't fit."""
    if scheme is not None:
        check_zeros(module, scheme)
    seen = graph if graph is not None else trace(module, example)
    return seen, {name: t.detach().cpu().numpy() for name, t in module.state_dict().items()}, scheme or Scheme()


def simplified(graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme, target: Target) -> Program:
    """The network's Program before layouts are chosen."""
    return share(shrink(fuse(lower(graph, tensors, scheme))), target)


class Build:
    """A network on its way: everything but the manifest's measured error is known after construction.

    ``planes``: the resolutions that run on planes; None: what tuning measured for such a network, else what is estimated to be the fastest.
    ``alone``: every layer that can be tuned has a kernel of its own.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, np.ndarray], scheme: Scheme, target: Target, threads: int, name: str = HOST, planes: Resolutions | None = None, alone: bool = False):
        self.graph, self.target, self.name = graph, target, name.partition(":")[0]
        program = simplified(graph, tensors, scheme, target)
        known = database.find_planes(network(program), target) if planes is None else (planes, database.ASKED)
        made = arrange(program, target, threads=threads) if known is None else arranged(program, known[0], target, threads)
        self.arrangement = {"planes": [list(size) for size in made.resolutions], "chosen": known[1] if known else database.MODEL}
        self.program, planes_at = split_inputs(fuse_bands(absorb_gates(made.program, made.planes, threads), made.planes, target), made.planes, threads)
        self.layouts = layouts(self.program, target, planes_at)
        self.kernels = [select(step, self.layouts, target) for step in self.program.steps]
        if not alone:
            self.program, self.kernels = fuse_pools(self.program, self.kernels, self.layouts)
        self.plan = plan(self.program, self.layouts, max((k.scratch for k in self.kernels), default=0), threads)
        self.blob, self.places = pack(self.kernels)
        self.names, self.objects, _ = cache.objects(self.kernels, target)

    def link(self) -> CompiledModel:
        """The network to load or to save; its manifest lacks the measured error. A library lies in a temporary folder that lives as long as the model."""
        parts = emit.parts(self.kernels, self.names, self.objects, self.plan, self.blob, self.places, self._manifest({}))
        if self.name in CROSS:
            return CrossModel(parts, self.name)
        folder = tempfile.TemporaryDirectory(prefix="npas-model-")
        path = Path(folder.name) / "model.so"
        emit.link_library(parts, toolchain.host(), path)
        return CompiledModel(path, keep=folder)

    def checked(self, model: CompiledModel, module: nn.Module, tolerance: float) -> CompiledModel:
        """The same network with its measured error in the manifest; a library is a new file, because the first one is loaded."""
        found = compare(model, module, tolerance)
        if found is None:
            return model
        measured = {"max_abs_err": float(f"{found[0]:.3g}"), "max_abs_output": float(f"{found[1]:.6g}")}
        if isinstance(model, CrossModel):
            return CrossModel(model.parts.with_manifest(self._manifest(measured)), self.name)
        folder = tempfile.TemporaryDirectory(prefix="npas-model-")
        path = Path(folder.name) / "model.so"
        emit.replace_manifest(model.path, self._manifest({}), self._manifest(measured), path)
        return CompiledModel(path, keep=folder)

    def _manifest(self, measured: Mapping[str, float]) -> str:
        """The manifest as JSON, its length independent of ``measured``."""
        target = {**dataclasses.asdict(self.target), "threads": self.plan.threads}
        document = {
            "schema": "npas-manifest/1",
            "target": {"name": self.name} | {key: target[key] for key in ("triple", "mcpu", "isa", "threads")},
            "tvm": cache.tvm_version(),
            "inputs": ports(self.program.inputs, "input"),
            "outputs": ports(self.program.outputs, "output"),
            "layout": self.arrangement,
            "kernels": [_row(kernel, self.layouts) for kernel in self.kernels],
            "max_abs_err": measured.get("max_abs_err"),
            "max_abs_output": measured.get("max_abs_output"),
            "workspace_bytes": self.plan.total,
            "weights_bytes": len(self.blob),
            "notes": notes(self.name) if self.name in CROSS else [],
            "macs_dense": self.graph.macs,
            "macs": sum(kernel.macs for kernel in self.kernels),
        }
        room = 2 * _NUMBER - sum(len(json.dumps(document[key])) for key in ("max_abs_err", "max_abs_output"))
        return json.dumps(document, indent=1) + " " * room


def ports(named: Sequence[tuple[str, tuple[int, ...]]], kind: str) -> list[dict[str, Any]]:
    """The manifest's word on what goes in or comes out."""
    return [{"name": name if kind == "input" else f"output{i}", "shape": list(shape), "dtype": "float32"} for i, (name, shape) in enumerate(named)]


def _row(kernel: Kernel, placed: Mapping[str, Layout]) -> dict[str, Any]:
    """What the manifest tells of a kernel. ``bytes`` is all that a call reads and writes: packed weights and activations with their frames."""
    step = kernel.step
    row: dict[str, Any] = {"layer": step.name, "kernel": kernel.rule, "scheme": step.scheme.label, "tile": kernel.tile, "macs": kernel.macs, "reason": kernel.reason}
    if step.weight is not None:
        row |= {"weight": list(step.weight.shape), "output": list(placed[step.output].shape)}
    activations = sum(placed[name].size for name in {*step.inputs, step.output} if name in placed)
    row["bytes"] = 4 * activations + sum(array.nbytes for array in kernel.data.values())
    return row | ({"tuned": kernel.tuned} if kernel.tuned else {})
