"""Why the winner won: for each layer, what its pruning costs in accuracy and saves in latency, found by leaving it dense. Imports progress, evaluator, lines, session, space, trials."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from stages.progress import Progress, bar
from stages.search.evaluator import FATAL, Evaluator
from stages.search.lines import describe
from stages.search.session import measuring_threads
from stages.search.space import Choices
from stages.search.trials import Journal


def ablate(winner: Choices, layers: Sequence[str], dense: Hashable, evaluator: Evaluator, journal: Journal, progress: Progress) -> list[dict[str, Any]]:
    """One row for each of ``layers`` whose choice in ``winner`` isn't ``dense``: the winner with that one layer dense beside the winner itself.

    Both are pruned in one shot with batch norms estimated anew, and not trained (``accuracy_without``, ``accuracy_with``): what a training would restore isn't the layer's doing.
    The latencies (ms; ``latency_without``, ``latency_with``) are measured one after the other. Rows are journalled; one that failed says so in ``error``.
    """
    at = journal.space.encode(winner)
    known = {r["layer"]: {k: v for k, v in r.items() if k not in ("kind", "of")} for r in journal.records if r["kind"] == "ablation" and r["of"] == at}
    variants: dict[str, Choices] = {"": winner}  # "": the winner itself
    variants |= {layer: (*winner[:i], dense, *winner[i + 1 :]) for i, layer in enumerate(layers) if winner[i] != dense}
    todo = [layer for layer in variants if layer not in known]
    with bar(progress, "why it won: one layer dense at a time", len(todo)), measuring_threads(evaluator) as threads:
        timings = {layer: threads.submit(evaluator.latency, variants[layer]) for layer in todo}
        for layer in todo:
            row: dict[str, Any] = {"layer": layer, "accuracy": None, "latency_ms": None, "error": None}
            try:
                row |= {"accuracy": evaluator.one_shot(variants[layer]), "latency_ms": timings[layer].result().ms}
            except FATAL:
                raise
            except Exception as error:
                row["error"] = describe(error)
            journal.append("ablation", of=at, **row)
            known[layer] = row
            progress.advance()
    choices = dict(zip(layers, winner, strict=True))
    return [_row(known[layer], known[""], choices[layer]) for layer in variants if layer]


def _row(without: dict[str, Any], whole: dict[str, Any], choice: Any) -> dict[str, Any]:
    return {
        "layer": without["layer"], "choice": choice.label, "accuracy_without": without["accuracy"], "accuracy_with": whole["accuracy"],
        "latency_without": without["latency_ms"], "latency_with": whole["latency_ms"], "error": without["error"] or whole["error"],
    }  # fmt: skip
