"""npas replace-ops: exponential activations and SE gates become hard versions (NPAS, section 5.1). Reads pretrain/model.pt; writes replace_ops/model.pt, graph.json, metrics.json, history.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import plain, save_checkpoint, sha256, state_dir, state_key, write_csv, write_json
from stages.config import Config
from stages.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNS = 50  # timed runs of each network


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Find and replace, measure both networks, fine-tune with distillation from the original. Resumes after kill -9; returns the metrics. Accuracies are fractions, latencies ms."""
    from stages.graph.rewrite import apply_replacements, exponentials_left, find_replacements
    from stages.graph.tracing import trace
    from stages.tasks import fit, load_network, make_task
    from stages.tasks.train import cpu_threads

    task, c = make_task(config.task), config.replace_ops
    original, module = load_network("pretrain/model.pt", task), load_network("pretrain/model.pt", task)
    example = task.example()
    before = trace(module, example)
    replacements = find_replacements(before)
    module = apply_replacements(module, replacements)
    graph = trace(module, example)
    progress.say(
        f"{len(replacements)} of {len(before)} operations replaced: {_summary(replacements) or 'nothing needs an exponential, so nothing is fine-tuned'}"
    )
    for layer in exponentials_left(graph):
        progress.say(f"left as it is: {layer.op if layer.op != 'unsupported' else layer.target} ({layer.name})")

    def accuracy(network: nn.Module) -> dict[str, float]:
        with cpu_threads(task.threads):
            return {split: task.evaluate(network, split) for split in ("val", "test")}

    folder = state_dir("replace_ops", state_key(config.task, c, config.probe.device, sha256("pretrain/model.pt")))
    latency = latencies([original, module], example, config.probe.device, folder, progress)
    reached = {"before": accuracy(original), "untuned": accuracy(module)}
    rows = fit(module, task, epochs=c.epochs if replacements else 0, lr=c.lr, weight_decay=c.weight_decay, seed=config.task.seed, teacher=original, distill=c.distill,
               checkpoint=folder / "checkpoint.pt", progress=progress, description="fine-tuning")  # fmt: skip
    reached["after"] = accuracy(module)
    found = {"metric": task.metric_name, "replacements": len(replacements), "accuracy": reached}
    metrics = found | {"latency_ms": dict(zip(("before", "after"), latency, strict=True)), "device": config.probe.device}
    progress.say(
        f"{task.metric_name} {100 * reached['before']['val']:.1f} -> {100 * reached['after']['val']:.1f} val, latency {latency[0]:.3f} -> {latency[1]:.3f} ms"
    )
    record = {"config": {"task": plain(config.task), "replace_ops": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    listed = [r.to_json() for r in replacements]
    save_checkpoint("replace_ops/model.pt", {"state_dict": module.state_dict(), "model": config.task.model, "replacements": listed, "metrics": found, **record})
    write_json("replace_ops/graph.json", graph.to_json() | {"replacements": listed})
    write_csv("replace_ops/history.csv", [{"epoch": r["epoch"], "loss": r["loss"], "top1": r["accuracy"]} for r in rows])
    write_json("replace_ops/metrics.json", metrics | record)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return metrics


def latencies(modules: Sequence[nn.Module], example: Tensor, device: str, folder: Path, progress: Progress) -> list[float]:
    """Median ms of each network, compiled and timed in interleaved rounds on ``device``; ``progress`` hears what there is to say against the times. The compiled files are deleted again."""
    import numpy as np

    from stages.compiler import compile_model
    from stages.devices import TimingProtocol, open_device, stats

    files = [folder / f"{number}.so" for number in range(len(modules))]
    try:
        for module, file in zip(modules, files, strict=True):
            compile_model(module, example).save(file)
        measured = open_device(device).measure(files, [np.ascontiguousarray(example.numpy())], TimingProtocol(runs=RUNS))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    for reason in measured.reasons:
        progress.say(f"latency: {reason}")
    return [stats(samples)["median"] for samples in measured.samples_ms]


def _summary(replacements: Sequence[Any]) -> str:
    """ "18 silu -> hardswish, 4 sigmoid -> hardsigmoid"."""
    kinds = [f"{r.before} -> {r.after}" for r in replacements]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
