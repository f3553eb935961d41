"""npas pretrain: train the dense starting point, or take the user's trained weights. Reads the task section; writes pretrain/model.pt, metrics.json and history.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.artifacts import plain, save_checkpoint, sha256, state_dir, state_key, write_csv, write_json
from stages.config import Config
from stages.errors import UsageError
from stages.progress import Progress


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Train ``pretrain.epochs`` epochs (none when ``task.weights`` is given), evaluate on val and test, save. Resumes after kill -9; returns the metrics."""
    from stages.tasks import fit, make_task
    from stages.tasks.models import load_weights
    from stages.tasks.train import cpu_threads

    task, c = make_task(config.task), config.pretrain
    module = task.model()
    origin = _weights_sha256(config.task.weights)
    epochs = c.epochs
    if config.task.weights is not None:
        load_weights(module, config.task.weights)
        epochs = 0
    checkpoint = state_dir("pretrain", state_key(config.task, c, origin)) / "checkpoint.pt"
    rows = fit(module, task, epochs=epochs, lr=c.lr, weight_decay=c.weight_decay, label_smoothing=c.label_smoothing, seed=config.task.seed,
               checkpoint=checkpoint, progress=progress, description="pretraining")  # fmt: skip
    with cpu_threads(task.threads):
        accuracy = {split: task.evaluate(module, split) for split in ("val", "test")}
    progress.say(f"{config.task.model}: {task.metric_name} {100 * accuracy['val']:.1f} val, {100 * accuracy['test']:.1f} test")
    metrics: dict[str, Any] = {"metric": task.metric_name, "accuracy": accuracy, "epochs": len(rows), "parameters": sum(p.numel() for p in module.parameters())}
    record = {"config": {"task": plain(config.task), "pretrain": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    save_checkpoint("pretrain/model.pt", {"state_dict": module.state_dict(), "model": config.task.model, "replacements": [], "metrics": metrics, **record})
    write_csv("pretrain/history.csv", [{"epoch": r["epoch"], "loss": r["loss"], "top1": r["accuracy"]} for r in rows])
    write_json("pretrain/metrics.json", metrics | ({"overrides": plain(overrides)} if overrides else {}))
    checkpoint.unlink(missing_ok=True)
    return metrics


def _weights_sha256(weights: str | None) -> str | None:
    if weights is None:
        return None
    if not Path(weights).is_file():
        raise UsageError(f"No weights file {weights}.", "Correct task.weights.")
    return sha256(weights)
