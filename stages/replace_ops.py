"""npas replace-ops: exponential activations and SE gates become hard versions (NPAS, section 5.1). Reads pretrain/model.pt; writes replace_ops/."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import plain, save_checkpoint, sha256, state_dir, state_key, write_csv, write_json
from stages.config import Config
from stages.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Find and replace, measure both networks, fine-tune with distillation from the original. Resumes after kill -9; returns the metrics (fractions, ms)."""
    from stages.graph.rewrite import apply_replacements, exponentials_left, find_replacements
    from stages.graph.tracing import trace
    from stages.tasks import fit, load_network, make_task
    from stages.tasks.train import cpu_threads

    task, c = make_task(config.task), config.replace_ops
    original, module = load_network("pretrain/model.pt", task), load_network("pretrain/model.pt", task)
    example = task.example()
    replacements = find_replacements(trace(module, example))
    module = apply_replacements(module, replacements)
    graph = trace(module, example)
    kinds = [f"{r.before} -> {r.after}" for r in replacements]
    progress.say(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "nothing to replace, so nothing to fine-tune")
    for layer in exponentials_left(graph):
        progress.say(f"left as it is: {layer.name} ({layer.target})")

    def accuracy(network: nn.Module) -> dict[str, float]:
        with cpu_threads(task.threads):
            return {split: task.evaluate(network, split) for split in ("val", "test")}

    folder = state_dir("replace_ops", state_key(config.task, c, config.probe.device, sha256("pretrain/model.pt")))
    slow, fast = latencies([original, module], example, config.probe.device, progress, config.compile.threads, config.probe.hosts)
    reached = {"before": accuracy(original)}
    reached["untuned"] = accuracy(module) if replacements else reached["before"]
    settings: dict[str, Any] = {"lr": c.lr, "weight_decay": c.weight_decay, "seed": config.task.seed, "teacher": original, "distill": c.distill}
    epochs, checkpoint = c.epochs if replacements else 0, folder / "checkpoint.pt"
    rows = fit(module, task, epochs=epochs, **settings, checkpoint=checkpoint, progress=progress, description="fine-tuning")
    reached["after"] = accuracy(module) if rows else reached["untuned"]
    progress.say(f"{task.metric_name} {100 * reached['before']['val']:.1f} -> {100 * reached['after']['val']:.1f} val, latency {slow:.3f} -> {fast:.3f} ms")

    found = {"metric": task.metric_name, "replacements": len(replacements), "accuracy": reached}
    metrics = found | {"latency_ms": {"before": slow, "after": fast}, "device": config.probe.device}
    record = {"config": {"task": plain(config.task), "replace_ops": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    listed = [r.to_json() for r in replacements]
    content = {"state_dict": module.state_dict(), "model": config.task.model, "replacements": listed, "metrics": found}
    save_checkpoint("replace_ops/model.pt", content | record)
    write_json("replace_ops/graph.json", graph.to_json() | {"replacements": listed} | record)
    write_csv("replace_ops/history.csv", [{"epoch": r["epoch"], "loss": r["loss"], "top1": r["accuracy"]} for r in rows])
    write_json("replace_ops/metrics.json", metrics | ({"overrides": plain(overrides)} if overrides else {}))
    checkpoint.unlink(missing_ok=True)
    return metrics


def latencies(modules: Sequence[nn.Module], example: Tensor, device: str, progress: Progress, threads: int = 1, hosts: Sequence[str] = ()) -> list[float]:
    """Median ms of each network, compiled for ``device`` and timed there in interleaved rounds; ``progress`` hears what speaks against the times."""
    import numpy as np

    from stages.compiler.api import compile_model
    from stages.compiler.deploy import save_together
    from stages.devices import TimingProtocol, open_device, stats

    opened = open_device(device, progress, hosts)
    with tempfile.TemporaryDirectory(prefix="npas-") as folder:
        networks = {f"network{number}": compile_model(module, example, target=opened.target, threads=threads) for number, module in enumerate(modules)}
        measured = opened.measure(save_together(networks, Path(folder), progress.say), [np.ascontiguousarray(example.numpy())], TimingProtocol(runs=50, threads=threads))
    opened.close()
    for reason in measured.reasons:
        progress.say(f"latency: {reason}")
    return [stats(samples)["median"] for samples in measured.samples_ms]
