"""npas compile: the pruned network, and beside it the dense and the original one, as shared libraries for the device. Reads the checkpoints and the scheme; writes compile/host/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import load_checkpoint, plain, read_json, sha256, write_json
from stages.config import Config
from stages.errors import ArtifactError
from stages.progress import Progress, bar

if TYPE_CHECKING:
    from torch import nn

    from stages.tasks import Task

FOLDER = Path("compile/host")


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Compile and check all three networks, save libraries, manifest and metrics; returns the metrics. WrongOutput when one doesn't compute what PyTorch computes."""
    from stages.compiler.api import compile_model
    from stages.schemes import Scheme
    from stages.tasks import load_network, make_task

    c, task = config.compile, make_task(config.task)
    scheme = Scheme.from_json(read_json("search_scheme/scheme.json"))
    networks = {
        "model": (_pruned(task), scheme),
        "dense": (load_network("replace_ops/model.pt", task), None),
        "original": (load_network("pretrain/model.pt", task), None),
    }
    manifests = {}
    with bar(progress, "compiling", len(networks)):
        for name, (module, pruning) in networks.items():
            compiled = compile_model(module, task.example(), pruning, c.target, c.threads, tolerance=c.tolerance)
            compiled.save(FOLDER / f"{name}.so")
            manifests[name] = compiled.manifest
            progress.advance(
                f"{name}.so: {compiled.manifest['macs'] / 1e6:.1f} million multiply-accumulates, largest error {compiled.manifest['max_abs_err']:.1e}"
            )
    made = manifests["model"]
    record = {"config": {"compile": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    metrics = {key: made[key] for key in ("max_abs_err", "max_abs_output", "macs", "weights_bytes", "workspace_bytes")} | {
        "macs_dense": manifests["dense"]["macs"]
    }
    write_json(FOLDER / "manifest.json", made | {"so_sha256": sha256(FOLDER / "model.so")} | record)
    write_json(FOLDER / "metrics.json", metrics | ({"overrides": plain(overrides)} if overrides else {}))
    return metrics


def _pruned(task: Task) -> nn.Module:
    """The replaced network with the weights of search-pruner. ArtifactError when they belong to another network."""
    from stages.tasks import load_network

    module = load_network("replace_ops/model.pt", task)
    try:
        module.load_state_dict(load_checkpoint("search_pruner/weights.pt")["state_dict"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"search_pruner/weights.pt doesn't fit replace_ops/model.pt: {reason}", "Run 'npas search-pruner' again.") from None
    return module
