"""Does the fast evaluation rank candidates as a full training does, and does early stopping stop the right ones?

    python benchmarks/fast_evaluation.py [--params FILE] [--schemes 24] [--full-epochs 12] [--seed 0] [--json FILE]

Schemes that the search might draw near the budget are each evaluated twice: as the search does (search_scheme.epochs after one-shot pruning), and with one-shot pruning and a long training
(search_pruner.epochs, its learning rate and decay). Kendall's tau-b between the fast accuracy (val) and the full one (val and test), with 95 % intervals from 2,000 bootstrap resamples.
Early stopping is applied in retrospect to the recorded curves, in 500 random orders of the schemes: how much training it saves, and its false stops, i.e. candidates that would have become
the best of their search. Every evaluation is kept (evaluations.jsonl in the project folder), so an interrupted run goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import kendalltau

from benchmarks.search_kit import Prepared, arguments, near_budget, prepare
from stages.config import SearchScheme
from stages.progress import Silent
from stages.schemes.prune import prune_
from stages.search.accuracy import FastEvaluation
from stages.search.early_stop import POINTS, stop_rule
from stages.search.evaluate import open_evaluator
from stages.search.space import Trial
from stages.search.trials import Journal
from stages.tasks import fit, recalibrate_bn

RESAMPLES, ORDERS = 2000, 500
CONFIDENCES = (0.8, 0.9, 0.95, 0.99)


class Says(Silent):
    """Progress on stderr."""

    def say(self, line: str) -> None:  # noqa: D102
        print(line, file=sys.stderr, flush=True)


def evaluations(ready: Prepared, count: int, full_epochs: float, seed: int) -> list[dict[str, Any]]:
    """One row a scheme: fast accuracy, curve, and accuracy on val and test after the full training. Rows that exist are kept."""
    path = Path(f"evaluations-{seed}-{full_epochs:g}.jsonl")
    with Journal(Path(f"candidates-{seed}.jsonl"), ready.space.space) as journal:
        chosen = journal.note("chosen") or []
        if len(chosen) < count:
            with open_evaluator(ready.config, ready.task, ready.candidates, ready.space, journal, Says()) as (evaluator, _, budget_ms):
                found = near_budget(ready, evaluator, budget_ms, count, seed, Says())
            chosen = journal.note("chosen", [ready.space.space.encode(c) for c in found])
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    for at in chosen[len(rows) : count]:
        rows.append(evaluation(ready, at, full_epochs))
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"scheme {len(rows)}/{count}: fast {rows[-1]['fast']:.4f}, full {rows[-1]['val']:.4f}, test {rows[-1]['test']:.4f}", file=sys.stderr, flush=True)
    return rows[:count]


def evaluation(ready: Prepared, at: list[int], full_epochs: float) -> dict[str, Any]:
    """Both evaluations of the candidate at these positions."""
    scheme, c = ready.space.scheme(ready.space.space.decode(at)), ready.config.search_pruner
    fast = FastEvaluation(ready.config, ready.task, ready.candidates).train(scheme)
    built = ready.candidates.build(scheme)
    masks = prune_(built.module, built.scheme)
    fit(built.module, ready.task, epochs=full_epochs, lr=c.lr, weight_decay=c.weight_decay, seed=c.seed, masks=masks, evaluate=False, threads=ready.config.search_scheme.train_threads)
    recalibrate_bn(built.module, ready.task)
    return {"at": at, "fast": fast.accuracy, "curve": fast.curve, "val": ready.task.evaluate(built.module), "test": ready.task.evaluate(built.module, "test")}


def rank_correlation(fast: list[float], full: list[float], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Kendall's tau-b and its 95 % bootstrap interval."""
    rng, x, y = np.random.default_rng(seed), np.array(fast), np.array(full)
    draws = [kendalltau(x[i], y[i]).statistic for i in rng.integers(len(x), size=(resamples, len(x)))]
    return {"tau": float(kendalltau(x, y).statistic), "ci95": [float(v) for v in np.nanpercentile(draws, [2.5, 97.5])]}


def early_stopping(rows: list[dict[str, Any]], confidence: float, seed: int = 0, orders: int = ORDERS) -> dict[str, float]:
    """The rule in retrospect, over random ``orders`` of ``rows`` as the trials of a search: shares of trials stopped, of training saved, of false stops, and the mean accuracy lost by them.

    As in a search, a candidate's rule knows the trials that were told when its batch was proposed: all but those of the batch before it.
    """
    rng, trials, stopped, false, improving, saved, lost = np.random.default_rng(seed), 0, 0, 0, 0, 0.0, 0.0
    for _ in range(orders):
        told: list[Trial] = []
        best = -1.0
        for place, row in enumerate(rows[i] for i in rng.permutation(len(rows))):
            if place % SearchScheme.batch == 0:
                rule = stop_rule(told[: max(0, place - SearchScheme.batch)], None, confidence)
            losses = [loss for _, loss in row["curve"]]
            point = next((p for p in range(1, POINTS) if rule and rule.hopeless(losses[:p])), POINTS)
            trials, saved = trials + 1, saved + 1 - point / POINTS
            improves = row["fast"] > best
            improving += improves and bool(told)
            if point < POINTS:
                stopped, false = stopped + 1, false + improves
            else:
                best = max(best, row["fast"])
            told.append(Trial((len(told),), row["fast"], 1.0, curve=tuple(map(tuple, row["curve"][:point])), stopped=point < POINTS))
        lost += max(row["fast"] for row in rows) - best
    return {
        "stopped": stopped / trials, "saved": saved / trials, "false_stops": false / max(1, stopped), "improvements_lost": false / max(1, improving), "accuracy_lost": lost / orders,
    }  # fmt: skip


def study(ready: Prepared, count: int, full_epochs: float, seed: int) -> dict[str, Any]:
    """Everything that this benchmark tells."""
    rows = evaluations(ready, count, full_epochs, seed)
    fast = [row["fast"] for row in rows]
    tau = {split: rank_correlation(fast, [row[split] for row in rows]) for split in ("val", "test")}
    return {"schemes": len(rows), "spread": [min(fast), max(fast)], "tau": tau, "early_stopping": {str(c): early_stopping(rows, c) for c in CONFIDENCES}}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--schemes", type=int, default=24)
    parser.add_argument("--full-epochs", type=float, help="default: search_pruner.epochs")
    o = parser.parse_args()
    target = o.json.resolve() if o.json else None
    ready = prepare(o.params.resolve() if o.params else None)
    found = study(ready, o.schemes, o.full_epochs or ready.config.search_pruner.epochs, o.seed)
    print(f"{found['schemes']} schemes, fast accuracy {found['spread'][0]:.4f} to {found['spread'][1]:.4f}")
    for split, tau in found["tau"].items():
        print(f"Kendall tau-b, fast against full ({split}): {tau['tau']:.2f}  [{tau['ci95'][0]:.2f}, {tau['ci95'][1]:.2f}]")
    print("\n| confidence | trials stopped | training saved | false stops among them | improvements lost | accuracy of the best lost |\n|---|---:|---:|---:|---:|---:|")
    for confidence, r in found["early_stopping"].items():
        print(f"| {confidence} | {100 * r['stopped']:.1f} % | {100 * r['saved']:.1f} % | {100 * r['false_stops']:.1f} % | {100 * r['improvements_lost']:.1f} % | {100 * r['accuracy_lost']:.3f} % |")
    if target:
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
