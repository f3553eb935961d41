"""The report's account of the search's choices: what each layer of the winner costs and brings, what the strategy came to prefer, how well other filter types replace a layer. Artifacts in, HTML text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npas_cli.charts import esc, signed
from npas_cli.report import Run
from npas_cli.report_sections import DASH, label, meter, missing, percent, section, short, table

BEST = 2  # choices of a layer that are shown


def why(run: Run) -> str:
    """The winner's ablation: one row a pruned layer, the dearest first."""
    title = "Why this scheme"
    if run.trials is None:
        return section(title, missing("trials"))
    rows = run.trials.get("ablation") or []
    if not rows:
        return ""
    effects = sorted((effect(row) for row in rows), key=lambda e: (e["gain"] is None, e["gain"]))
    most = max((abs(e["saved"] or 0) for e in effects), default=0) or 1.0

    def cells(e: Mapping[str, Any]) -> list[str]:
        if e["error"]:
            return [short(e["layer"]), f"{esc(e['choice'])}<br>failed: {esc(e['error'])}", DASH, DASH, ""]
        gain, saved = e["gain"], e["saved"]
        figures = [signed(100 * gain) if gain is not None else DASH, f"{signed(100 * saved)} %" if saved is not None else DASH]
        return [short(e["layer"]), esc(e["choice"]), *figures, meter(max(0.0, saved) / most) if saved is not None else ""]

    note = (
        "The winner with one layer dense at a time, pruned in one shot, batch norms estimated anew, no weight trained: the accuracy that comes back (in points of the val images, "
        "before any training), and the latency that the layer's pruning saves. Layers that cost much accuracy come last; those that save the most have the longest bars."
    )
    return section(title, table(["layer", "choice", "accuracy without its pruning", "latency saved", ""], map(cells, effects), left=2, cls="layers wrap"), note)


def effect(row: Mapping[str, Any]) -> dict[str, Any]:
    """``gain``: accuracy that a dense layer brings back, a fraction; ``saved``: the share of the winner-with-that-layer-dense's latency that pruning it saves."""
    accuracy, latency = (row["accuracy_without"], row["accuracy_with"]), (row["latency_without"], row["latency_with"])
    return {
        "layer": row["layer"], "choice": row["choice"], "error": row["error"],
        "gain": None if None in accuracy else accuracy[0] - accuracy[1], "saved": None if None in latency else 1 - latency[1] / latency[0],
    }  # fmt: skip


def preferences(run: Run) -> str:
    """What the strategy would choose for each layer by now, beside what the winner has."""
    found = (run.trials or {}).get("preferences")
    if not found:
        return ""
    assert run.trials is not None
    layers, strategy = (run.scheme or {}).get("layers", {}), run.trials["config"].get("strategy")

    def cells(name: str, worth: Mapping[str, float]) -> list[str]:
        order = sorted(worth, key=lambda choice: (-worth[choice], choice))
        low, high = worth[order[-1]], worth[order[0]]
        bars = [f"{meter((worth[c] - low) / (high - low))} {esc(c)}" if high > low else esc(c) for c in order[:BEST]]
        taken = label(layers[name]) if name in layers else "none"
        place = f"{order.index(taken) + 1} of {len(order)}" if taken in order else DASH
        return [short(name), *bars, *[""] * (BEST - len(bars)), esc(taken), place]

    head = ["layer", "most preferred", *["next"] * (BEST - 1), "the winner's", "its place"]
    note = f"What the strategy ({strategy}) has come to think of each layer's choices over all trials; a full bar is the layer's best, an empty one its worst. A choice that was never tried counts as the strategy starts with it."
    return section("What the search came to prefer", table(head, [cells(name, worth) for name, worth in found.items()], left=BEST + 2, cls="layers wrap"), note)


def filter_types(run: Run) -> str:
    """The reconstruction error of every filter type that a layer could have become."""
    rows = (run.trials or {}).get("reconstruction") or []
    if not rows:
        return ""
    types = list(dict.fromkeys(row["filter_type"] for row in rows))
    errors = {(row["layer"], row["filter_type"]): row["error"] for row in rows}
    chosen = {name: entry.get("filter_type", "keep") for name, entry in ((run.scheme or {}).get("layers", {})).items()}

    def cells(layer: str) -> list[str]:
        figures = [percent(errors[layer, kind], 2) if (layer, kind) in errors else DASH for kind in types]
        marked = [f"<b>{figure}</b>" if chosen.get(layer) == kind else figure for figure, kind in zip(figures, types, strict=True)]
        return [short(layer), esc(chosen.get(layer, "keep")), *marked]

    note = (
        "Before the search, each layer that may become another filter type was replaced by it, with weights fitted to the layer's feature maps on calibration images. The error is the mean squared "
        "difference in percent of the feature map's variance: 0 is a perfect replacement, 100 is as good as a constant. Bold: what the scheme has."
    )
    body = table(["layer", "filter type", *(f"{kind} %" for kind in types)], map(cells, dict.fromkeys(row["layer"] for row in rows)), left=2, cls="layers wrap")
    return section("Filter types", f"<details{' open' if len(rows) <= 40 else ''}><summary>{len(rows)} replacements of {len({row['layer'] for row in rows})} layers</summary>{body}</details>", note)
