"""The sections of the report, each a function from the run's artifacts to HTML text. What isn't there yet is named, with the command that makes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from npas_cli.charts import esc, signed
from npas_cli.report import TITLES, Run, Verdict, command, rows, verdict

SCHEMES = ("none", "filter", "block-punched", "pattern", "block-based")
DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
MOST_RATE = 10.0  # the rate of the strongest colour


def section(title: str, body: str, note: str = "") -> str:
    """One section with its heading and an introductory sentence (plain text)."""
    return f"<section><h2>{esc(title)}</h2>{f'<p class=note>{esc(note)}</p>' if note else ''}{body}</section>"


def missing(field: str) -> str:
    """Instead of a section's body."""
    return f'<p class="missing">Nothing here yet: <code>{esc(command(field))}</code> makes it.</p>'


def table(head: Sequence[str], body: Iterable[Sequence[str]], left: int = 1, cls: str = "") -> str:
    """A table of ready HTML cells; the first ``left`` columns are text, the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}{'' if i < left else ' class=n'}>{v}</{tag}>" for i, v in enumerate(values))

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in body)
    return f'<div class="wide"><table class="{cls}"><thead><tr>{cells("th", [esc(h) for h in head])}</tr></thead><tbody>{lines}</tbody></table></div>'


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, without the sign."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def ms(value: float | None) -> str:
    """Milliseconds with three significant decimals where they matter."""
    if value is None:
        return DASH
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def count(value: float | None) -> str:
    """12 345 678 as 12.3 M."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
    return f"{value:g}"


def interval(ci95: Sequence[float] | None) -> str:
    """A 95 % interval."""
    return DASH if ci95 is None else f"{ms(ci95[0])}\N{NO-BREAK SPACE}{DASH}\N{NO-BREAK SPACE}{ms(ci95[1])}"


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share that was seen in ``n`` samples (Wilson 1927): right also at 0 and 1."""
    z = 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


# The head ------------------------------------------------------------------------------------------------------------------------------
def headline(run: Run) -> str:
    """Verdict, four figures, the three networks."""
    v, bench = verdict(run), run.bench
    faster = bench["speedup"]
    before, after = run.accuracy("original"), run.accuracy("pruned")
    change = f"{signed(100 * (after - before))} points against the original" if before is not None and after is not None else "after pruning"
    tiles = [
        ("latency", f"{ms(bench['stats']['median'])} ms", f"median; 95% interval {interval(bench['stats']['ci95'])}"),
        ("speed-up", f"{faster['ratio']:.2f}{TIMES}", f"against the dense network; 95% interval {faster['ci95'][0]:.2f} {DASH} {faster['ci95'][1]:.2f}"),
        (f"{run.metric} ({run.split})", f"{percent(after)} %" if after is not None else DASH, change),
        ("budget", budget_text(v), budget_detail(v, run)),
    ]
    body = "".join(f"<div class=tile><dt>{esc(name)}</dt><dd><b>{esc(value)}</b><span>{esc(detail)}</span></dd></div>" for name, value, detail in tiles)
    return f"{badge(v)}{emulated(bench)}<dl class=tiles>{body}</dl>{networks(run)}"


def emulated(bench: Mapping[str, Any]) -> str:
    """The warning that every table of an emulated device carries."""
    return '<p class="badge bad">EMULATED, not a phone</p>' if bench["device"].get("emulated") else ""


def badge(v: Verdict) -> str:
    """Budget met, missed or unknown; the word carries it, the colour only helps."""
    if v.met is None:
        return '<p class="badge">No budget is known</p>'
    return '<p class="badge good">\N{CHECK MARK} Budget met</p>' if v.met else '<p class="badge bad">\N{MULTIPLICATION X} Budget not met</p>'


def budget_text(v: Verdict) -> str:
    """The budget in ms."""
    return DASH if v.limit_ms is None else f"{ms(v.limit_ms)} ms"


def budget_detail(v: Verdict, run: Run) -> str:
    """Where the budget comes from, and by how much it is kept."""
    if v.limit_ms is None:
        return f"{command('scheme')} sets one"
    used = run.bench["stats"]["median"] / v.limit_ms
    source = "given in milliseconds" if v.ms is not None else f"{v.ratio:g} of the dense latency, same rounds"
    return f"{source}; {100 * used:.0f} % of it used"


def networks(run: Run) -> str:
    """The table of the three networks."""
    n = (run.bench.get("task") or {}).get("samples", {}).get(run.split)

    def cells(row: Mapping[str, Any]) -> list[str]:
        accuracy = row["top1"]
        sure = f"{percent(wilson(accuracy, n)[0])} {DASH} {percent(wilson(accuracy, n)[1])}" if accuracy is not None and n else DASH
        other = percent(run.accuracy(row["network"], "val"))
        figures = [percent(accuracy), sure, other, ms(row["latency_ms"]), interval(row["ci95"]), f"{row['speedup']:.2f}{TIMES}", count(row["macs"])]
        return [esc(TITLES[row["network"]]), *figures]

    head = ["network", f"{run.metric} {run.split} %", "95% interval", "val %", "median ms", "95% interval", "against dense", "MACs"]
    return table(head, map(cells, rows(run)), cls="networks")


# The layers ----------------------------------------------------------------------------------------------------------------------------
def label(entry: Mapping[str, Any]) -> str:
    """A layer's choice in words, as the search names it: "block-punched/8 3x", "1x1|filter 2x", "skip"."""
    channels = f"x{entry['channels']}" if entry.get("channels", 1) > 1 else ""
    block = f"/{entry['block']}{channels}" if entry["block"] else ""
    pruned = "" if entry["scheme"] == "none" else f"{entry['scheme']}{block} {entry['rate']:g}x"
    return "|".join(part for part in (retyped(entry), pruned) if part) or "none"


def retyped(entry: Mapping[str, Any]) -> str:
    """The filter type that a layer has become; empty when it is what it was."""
    kind = entry.get("filter_type", "keep")
    return "" if kind == "keep" else str(kind)


def chip(entry: Mapping[str, Any], tip: str = "") -> str:
    """A square whose colour is the scheme and whose strength is the rate."""
    name = entry["scheme"] if entry["scheme"] in SCHEMES else "none"
    ring = " retyped" if retyped(entry) else ""
    strength = 1.0 if name == "none" else 0.3 + 0.7 * min(1.0, math.log(entry["rate"]) / math.log(MOST_RATE))
    title = f' title="{esc(tip)}"' if tip else ""
    return f'<i class="chip s-{name}{ring}" style="--strength:{strength:.2f}"{title}></i>'


def scheme_map(run: Run) -> str:
    """What became of every prunable layer: a strip to see the pattern, a table to read it."""
    title = "Scheme of each layer"
    if run.scheme is None:
        return section(title, missing("scheme"))
    layers = prunable(run)
    key = "".join(f"<li>{chip({'scheme': s, 'rate': MOST_RATE})}{esc(s)}</li>" for s in SCHEMES if any(entry["scheme"] == s for _, entry, _ in layers))
    key += f"<li>{chip({'scheme': 'none', 'filter_type': 'other'})}another filter type</li>" if any(retyped(entry) for _, entry, _ in layers) else ""
    strip = "".join(chip(entry, f"{name}: {label(entry)}") for name, entry, _ in layers)
    body = [layer_cells(i, name, entry, shape, run) for i, (name, entry, shape) in enumerate(layers, 1)]
    head = ["#", "layer", "operation", "scheme", "weights", "kept", "MACs", "kept", ""]
    note = "Every layer that can be pruned, in network order; colour tells the scheme, a stronger colour a higher rate. Kept MACs are those of the compiled network."
    note += f" In all {count(run.pruner['kept_weights'])} of {count(run.pruner['weights'])} weights stay." if run.pruner else ""
    return section(title, f'<ul class="legend">{key}</ul><div class="strip">{strip}</div>{table(head, body, left=4, cls="layers map")}', note)


def prunable(run: Run) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(module, its scheme, its layer in the graph or {}) in network order."""
    assert run.scheme is not None
    chosen = run.scheme["layers"]
    by_module = {x["module"]: x for x in reversed(run.graph["layers"]) if x["module"]} if run.graph else {}
    order = [x["module"] for x in run.graph["layers"] if x["module"] in chosen] if run.graph else list(chosen)
    return [(name, chosen[name], by_module.get(name, {})) for name in dict.fromkeys([*order, *chosen])]


def layer_cells(number: int, name: str, entry: Mapping[str, Any], layer: Mapping[str, Any], run: Run) -> list[str]:
    """One row of the scheme map."""
    weights, macs = weight_count(layer), layer.get("macs")
    kept = None if retyped(entry) else 1 / entry["rate"]  # another filter type has other weights
    compiled = compiled_macs(run, layer.get("name"), bool(retyped(entry)))
    share = compiled / macs if macs and compiled is not None and (compiled or retyped(entry)) else None  # without a kernel of its own: fused, its share isn't known
    words = [str(number), short(name), esc(operation(layer)), f"{chip(entry)}{esc(label(entry))}"]
    return [*words, count(weights), f"{percent(kept, 0)}{' %' if kept is not None else ''}", count(macs), f"{percent(share, 0)}{' %' if share is not None else ''}", meter(share)]


def compiled_macs(run: Run, name: str | None, retyped: bool) -> int | None:
    """Multiply-accumulates of a layer in the compiled network; a layer of another filter type is compiled as its parts, named below it."""
    if run.manifest is None or name is None:
        return None
    return sum(k["macs"] for k in run.manifest["kernels"] if k["layer"] == name or (retyped and k["layer"].startswith(f"{name}.")))


def short(name: str) -> str:
    """A long name that is cut at its beginning where space is short, whole in the tooltip."""
    return f'<code class="short" title="{esc(name)}"><bdi>{esc(name)}</bdi></code>'


def operation(layer: Mapping[str, Any]) -> str:
    """ "conv 3x3, 64 to 128, 16x16" from a layer of graph.json."""
    if not layer:
        return DASH
    a = layer["attrs"]
    if layer["op"] == "linear":
        return f"linear, {a['in_features']} to {a['out_features']}"
    stride = f" /{a['stride'][0]}" if a["stride"][0] > 1 else ""
    kernel, pixels = TIMES.join(map(str, a["kernel"])), TIMES.join(map(str, layer["shape"][2:]))
    return f"conv {kernel}{stride}, {a['in_channels']} to {a['out_channels']}, {pixels}"


def weight_count(layer: Mapping[str, Any]) -> int | None:
    """Weights of a prunable layer of graph.json."""
    if not layer:
        return None
    a = layer["attrs"]
    return a["in_features"] * a["out_features"] if layer["op"] == "linear" else a["out_channels"] * a["in_channels"] * math.prod(a["kernel"])


def meter(share: float | None) -> str:
    """A small horizontal bar for a share 0..1."""
    return "" if share is None else f'<span class="meter"><i style="width:{100 * min(1.0, share):.1f}%"></i></span>'


def layer_times(run: Run) -> str:
    """Paired bars: each layer dense and pruned."""
    layers = run.bench["layers"]
    most = max((v for x in layers for v in (x["ms"], x["dense_ms"]) if v is not None), default=0.0) or 1.0

    def bars(x: Mapping[str, Any]) -> str:
        return "".join(f'<i class="bar {cls}" style="width:{100 * (value or 0) / most:.2f}%"></i>' for cls, value in (("dense", x["dense_ms"]), ("pruned", x["ms"])))

    def cells(number: int, x: Mapping[str, Any]) -> list[str]:
        faster = f"{x['dense_ms'] / x['ms']:.2f}{TIMES}" if x["ms"] and x["dense_ms"] else DASH
        kernel = x["kernel"] or DASH
        return [str(number), short(x["name"]), short(kernel), f"<div class=pair>{bars(x)}</div>", ms(x["dense_ms"]), ms(x["ms"]), faster]

    sums = [sum(x[key] or 0 for x in layers) for key in ("dense_ms", "ms")]
    total = ["", "<b>sum of layers</b>", "", "", f"<b>{ms(sums[0])}</b>", f"<b>{ms(sums[1])}</b>", f"<b>{sums[0] / sums[1]:.2f}{TIMES}</b>" if sums[1] else ""]
    key = '<ul class="legend"><li><i class="bar dense"></i>dense</li><li><i class="bar pruned"></i>pruned</li></ul>'
    note = "Median of profiled runs, in network order; a dash: fused into a neighbour, or removed. Timing each kernel costs a little, so the sum differs from the whole network."
    return section("Milliseconds of each layer", key + table(["#", "layer", "kernel", "", "dense ms", "pruned ms", "speed-up"], [*(cells(i, x) for i, x in enumerate(layers, 1)), total], left=4, cls="times"), note)


def replacements(run: Run) -> str:
    """What phase 1 replaced."""
    title = "Operators replaced"
    if run.graph is None or run.replace is None:
        return section(title, missing("graph"))
    found = run.graph.get("replacements", [])
    latency, accuracy = run.replace["latency_ms"], run.replace["accuracy"]
    steps = [("before", "before"), ("untuned", "replaced, not yet tuned"), ("after", "fine-tuned")]
    effect = table(["", f"{run.metric} val %", "median ms"], [[name, percent(accuracy.get(k, {}).get("val")), ms(latency.get(k))] for k, name in steps])
    listed = table(["layer", "before", "after"], [[f"<code>{esc(r['layer'])}</code>", esc(r["before"]), esc(r["after"])] for r in found], left=3) if found else "<p>None was needed.</p>"
    return section(title, f"{effect}<details{' open' if len(found) <= 12 else ''}><summary>{len(found)} replacements</summary>{listed}</details>", "Exponential activations and gates became piecewise-linear ones; one fine-tuning won the accuracy back.")
