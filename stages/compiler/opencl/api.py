"""compile_opencl: a network and a scheme in, checked OpenCL kernels with their plan out. The order of the backend's passes is this file. Imports torch."""

from __future__ import annotations

from torch import Tensor, nn

from stages.compiler.api import ports, prepare
from stages.compiler.cache import tvm_version
from stages.compiler.check import compare
from stages.compiler.fuse import fuse
from stages.compiler.lower import lower
from stages.compiler.opencl import generate, runner
from stages.compiler.opencl.layouts import layouts, share_memory
from stages.compiler.opencl.model import Network, OpenclModel
from stages.compiler.pack import pack
from stages.compiler.shrink import shrink
from stages.compiler.target import HOST
from stages.errors import DeviceNotFound, UsageError
from stages.graph.layer import Graph
from stages.schemes.scheme import Scheme

HALF_TOLERANCE = 0.05  # of the largest output, where activations and weights are stored in half precision (11 bits): random weights in fifty layers lose 3 %


def compile_opencl(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    scheme: Scheme | None = None,
    target: str = HOST,
    storage: str = "float32",
    *,
    graph: Graph | None = None,
    tolerance: float = 1e-3,
    check: bool = True,
) -> OpenclModel:
    """``module`` (in eval mode, float32) as OpenCL kernels for inputs shaped like ``example``; arguments and errors as of compile_model.

    ``storage``: "float32", or "float16" for activations and weights of half the size; sums stay in single precision, and the tolerance is at least HALF_TOLERANCE.
    With ``check`` the outputs are compared with PyTorch's on this machine's OpenCL device; where there is none, ``manifest["notes"]`` says so.
    """
    if storage not in generate.STORAGES:
        raise UsageError(f"Unknown storage type '{storage}'.", f"Known: {', '.join(generate.STORAGES)}.")
    seen, tensors, fitting = prepare(module, example, scheme, graph)
    program = shrink(fuse(lower(seen, tensors, fitting)))
    placed = layouts(program)
    kernels = generate.select(program.steps, placed, storage)
    blob, places = pack(kernels)
    memory = share_memory(program, placed)
    plan = generate.launch_plan(program, kernels, memory, places, storage)
    manifest = {
        "schema": "npas-manifest/1",
        "target": {"name": target, "backend": "opencl", "storage": storage, "threads": 1},
        "tvm": tvm_version(),
        "inputs": ports(program.inputs, "input"),
        "outputs": ports(program.outputs, "output"),
        "kernels": [generate.row(kernel, name) for kernel, name in zip(kernels, generate.names(kernels), strict=True)],
        "max_abs_err": None,
        "max_abs_output": None,
        "checked_on": None,
        "workspace_bytes": sum(plan["buffers"]),
        "weights_bytes": len(blob),
        "notes": [],
        "macs_dense": seen.macs,
        "macs": sum(kernel.macs for kernel in kernels),
    }
    model = OpenclModel(Network(generate.source(kernels), plan, blob), manifest)
    return _checked(model, module, tolerance if storage == "float32" else max(tolerance, HALF_TOLERANCE)) if check else model


def _checked(model: OpenclModel, module: nn.Module, tolerance: float) -> OpenclModel:
    """The same network with its measured error in the manifest, or a note that there was nothing to run it on. WrongOutput when it is too large."""
    try:
        device = model.run([]).device
    except DeviceNotFound:
        return OpenclModel(model.network, model.manifest | {"notes": [f"The network was compiled but not run: there is no OpenCL device on this machine. {runner.HINT}"]})
    error = compare(model, module, tolerance)
    assert error is not None
    return model.measured(error, device)
