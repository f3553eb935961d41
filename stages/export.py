"""npas export: the pruned network in formats that other tools read: safetensors (weights) and ONNX (the whole network, dense shapes, pruned weights exactly 0).

Reads search_pruner/weights.pt and search_scheme/scheme.json; writes export/.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import load_checkpoint, read_json, sha256, write_atomic
from stages.config import Config
from stages.errors import ArtifactError, NpasError, UsageError
from stages.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, SCHEME = "search_pruner/weights.pt", "search_scheme/scheme.json"
FILES = {"safetensors": "export/weights.safetensors", "onnx": "export/model.onnx"}
Metadata = Mapping[str, str]


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Write each of ``export.formats`` and remove what an earlier run wrote in another. Returns the files with their sizes in bytes."""
    from stages.tasks import load_network, make_task
    from stages.tasks.trainer import apply_masks_

    formats = config.export.formats
    if "onnx" in formats:
        require_onnx()
    task, content = make_task(config.task), load_checkpoint(WEIGHTS)
    if content["scheme_sha256"] != sha256(SCHEME):
        raise ArtifactError(f"{WEIGHTS} was pruned to another scheme than {SCHEME} holds.", "Run 'npas search-pruner' again.")
    network = load_network(WEIGHTS, task)
    apply_masks_(network, content["masks"])
    metadata = describe(content, read_json(SCHEME)) | normalisation(task)
    makers: dict[str, Callable[[], bytes]] = {
        "safetensors": lambda: safetensors_bytes(network.state_dict(), metadata), "onnx": lambda: onnx_bytes(network, task.example(2), metadata),
    }  # fmt: skip
    for name, path in FILES.items():
        if name in formats:
            data = makers[name]()
            write_atomic(path, lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
        else:
            Path(path).unlink(missing_ok=True)
    sizes = {FILES[name]: Path(FILES[name]).stat().st_size for name in formats}
    for path, size in sizes.items():
        progress.say(f"{path}: {size / 1e6:.2f} MB")
    return {"files": sizes}


def require_onnx() -> None:
    """UsageError unless torch can write ONNX here; before any work is done."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"The ONNX export needs the Python package{'s' * (len(missing) > 1)} {' and '.join(missing)}.", "Install npas with the extra 'onnx': pip install 'npas[onnx]'.")


def describe(content: Mapping[str, Any], scheme: Mapping[str, Any]) -> dict[str, str]:
    """What the files say about where they come from, as texts; structured values are JSON."""
    facts = {
        "model": content["model"], "algorithm": content["algorithm"], "scheme_sha256": content["scheme_sha256"], "scheme": scheme["layers"],
        "replacements": content["replacements"], "filter_types": content["filter_types"], "accuracy": content["metrics"]["accuracy"]["pruned"], "metric": content["metrics"]["metric"],
    }  # fmt: skip
    return {"format": "pt"} | {f"npas.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def normalisation(task: object) -> dict[str, str]:
    """Mean and deviation that the network wants images normalised with, of a task that has them."""
    return {f"npas.{name}": json.dumps(value.tolist()) for name in ("mean", "std") if (value := getattr(task, name, None)) is not None}


def safetensors_bytes(state: Mapping[str, Tensor], metadata: Metadata) -> bytes:
    """The state_dict as a safetensors file; tensors that share memory are stored one by one."""
    from safetensors.torch import save

    return save({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, dict(metadata))


def onnx_bytes(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    """The network as an ONNX model with inputs "input" (N, ...) and the output "output" for any batch size N.

    Notes on where each operation stands in whose file are left out: they tell about this machine and would make every file another.
    """
    import torch

    try:
        program = torch.onnx.export(
            network, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["input"], output_names=["output"], verbose=False
        )
        assert program is not None
        model = program.model_proto
    except Exception as error:  # the exporter wraps whatever went wrong in its own kinds
        raise NpasError(f"torch can't export this network to ONNX: {str(error).splitlines()[0]}.", "Export safetensors only; -vv shows the traceback.") from error
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for name, value in metadata.items():
        if name.startswith("npas."):
            model.metadata_props.add(key=name, value=value)
    return bytes(model.SerializeToString(deterministic=True))
