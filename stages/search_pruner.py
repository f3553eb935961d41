"""npas search-pruner: find the algorithm that prunes best to the chosen scheme, and run it to the end (NPAS, section 5.3).

Reads replace_ops/model.pt (the teacher), search_scheme/network.pt (where it starts) and scheme.json; writes search_pruner/weights.pt, metrics.json, race.csv and history.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.artifacts import load_checkpoint, plain, read_json, save_checkpoint, sha256, state_dir, state_key, write_csv, write_json
from stages.config import Config
from stages.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.pruners import Outcome

MODEL, NETWORK, SCHEME = "replace_ops/model.pt", "search_scheme/network.pt", "search_scheme/scheme.json"


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Race the algorithms, train the winner, check its zeros, save. Resumes after kill -9; returns the metrics. Accuracies are fractions."""
    from stages.graph import trace
    from stages.pruners import race
    from stages.pruners.journal import code_version
    from stages.pruners.purify import purify_
    from stages.schemes import Scheme, check_zeros, resolve
    from stages.tasks import load_network, make_task
    from stages.tasks.train import cpu_threads

    c = config.search_pruner
    chosen = Scheme.from_json(read_json(SCHEME))
    task = make_task(config.task)
    dense, start, base = load_network(MODEL, task), load_network(NETWORK, task), load_checkpoint(NETWORK)
    scheme = resolve(chosen, trace(start, task.example()))
    inputs = {path: sha256(path) for path in (MODEL, NETWORK, SCHEME)}
    folder = state_dir("search_pruner", state_key(config.task, c, inputs, code_version()))
    outcome = race(task, start, scheme, c, folder, progress, make_task=partial(make_task, config.task), teacher=dense)
    pruned = outcome.pruned
    purified = purify_(pruned.module, trace(pruned.module, task.example())) if c.purify else {}
    check_zeros(pruned.module, scheme, pruned.masks)
    with cpu_threads(task.threads):
        accuracy = {
            name: {split: task.evaluate(network, split) for split in ("val", "test")} for name, network in (("dense", dense), ("pruned", pruned.module))
        }
    metrics = {"metric": task.metric_name, "accuracy": accuracy, "winner": outcome.winner.label} | _scores(outcome) | _sizes(pruned.module, pruned.masks)
    metrics |= {"purified": sum(purified.values())}
    record = {"config": {"task": plain(config.task), "search_pruner": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    save_checkpoint("search_pruner/weights.pt", {
        "state_dict": pruned.module.state_dict(), "masks": pruned.masks, "model": base["model"], "replacements": base["replacements"], "filter_types": base["filter_types"],
        "scheme_sha256": inputs[SCHEME], "algorithm": outcome.winner.algorithm, "distill": outcome.winner.distill, "lr": outcome.winner.lr, "scores": plain(outcome.scores), "metrics": metrics, **record,
    })  # fmt: skip
    write_csv("search_pruner/race.csv", [
        {"entry": s["entry"], "top1": s["accuracy"], "epochs": s["epochs"], "loss": s["curve"][-1]["loss"] if s["curve"] else None, "error": s["error"]} for s in outcome.scores
    ])  # fmt: skip
    write_csv("search_pruner/history.csv", [{"epoch": r["epoch"], "loss": r["loss"], "top1": r["accuracy"]} for r in pruned.curve])
    write_json("search_pruner/race.json", metrics | {"rungs": [_rung(rows) for rows in outcome.rungs], "history": pruned.curve} | record)
    write_json("search_pruner/metrics.json", metrics | ({"overrides": plain(overrides)} if overrides else {}))
    for checkpoint in folder.glob("*.pt"):
        checkpoint.unlink()
    before, after = accuracy["dense"]["val"], accuracy["pruned"]["val"]
    progress.say(
        f"{outcome.winner.text}: {task.metric_name} {100 * before:.1f} -> {100 * after:.1f} val, {metrics['kept_weights']} of {metrics['weights']} weights stay"
    )
    return metrics


def _rung(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One rung of race.json: its length, each entry's accuracy at its end, and the training curves."""
    return {"epochs": rows[0]["epochs"], "race": {r["entry"]: r["accuracy"] for r in rows if not r["error"]}, "curves": {r["entry"]: r["curve"] for r in rows if not r["error"]}}


def _scores(outcome: Outcome) -> dict[str, Any]:
    """Accuracy of each entry in the last rung that it reached, and why the others have none."""
    errors = {s["entry"]: s["error"] for s in outcome.scores if s["error"]}
    return {"race": {s["entry"]: s["accuracy"] for s in outcome.scores if not s["error"]}} | ({"failed": errors} if errors else {})


def _sizes(module: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Learnt weights before and after, and the share that is zero."""
    total = sum(p.numel() for p in module.parameters())
    lost = sum(int((~mask).sum()) for mask in masks.values())
    return {"weights": total, "kept_weights": total - lost, "sparsity": lost / total}
