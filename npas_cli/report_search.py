"""The report's drawings of the search: accuracy against latency, the history by trial, the race of the pruners; and the timed runs. Artifacts in, HTML text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from npas_cli.charts import BOTTOM, TOP, Axis, Series, across, esc, floor, frame, legend, lines, mark, padded, polyline, rule, steps, svg, text
from npas_cli.report import Run, verdict
from npas_cli.report_sections import DASH, label, missing, ms, percent, section, table

Trial = Mapping[str, Any]
LAG = "The curves lag behind at first, as the running statistics of batch norms do; the table's figures are with statistics estimated anew."
HIGHEST = 2.0  # timed runs more than this many times the slowest network's median are drawn at the upper edge
SPREAD = 0.05  # the least range of accuracies that is shown in full


def meets(trial: Trial, budget_ms: float) -> bool:
    """Trained, measured, and within the budget."""
    return trial["state"] == "complete" and trial["latency_ms"] is not None and trial["latency_ms"] <= budget_ms


def chosen(run: Run) -> Trial | None:
    """The trial whose choices are those of scheme.json, which also names layers that had no choice: dense ones, and gates that lose filters with what they scale."""
    if run.scheme is None or run.trials is None:
        return None
    taken = {name: label(entry) for name, entry in run.scheme["layers"].items()}
    return next((t for t in run.trials["trials"] if all(taken.get(name) == choice for name, choice in t["choices"].items())), None)


def tip(t: Trial) -> str:
    """What a pointer resting on a trial reads."""
    accuracy = f"{percent(t['accuracy'])} %" if t["accuracy"] is not None else "not trained"
    return f"trial {t['trial']}: {accuracy}, {ms(t['latency_ms'])} ms, {t['state']}"


# Pareto --------------------------------------------------------------------------------------------------------------------------------
def pareto(run: Run) -> str:
    """Accuracy against latency of every trial, the budget, the front, the choice, and the three networks."""
    title = "Accuracy against latency"
    if run.trials is None:
        return section(title, missing("trials"))
    doc = run.trials
    trials, budget, dense = doc["trials"], doc["budget_ms"], doc["dense_ms"]
    known = [t for t in trials if t["accuracy"] is not None and t["latency_ms"] is not None]
    ends = references(run, dense)
    accuracies = [t["accuracy"] for t in known] + [a for _, _, a, _, _ in ends]
    least = floor(accuracies, SPREAD)
    x = across(*padded([t["latency_ms"] for t in trials if t["latency_ms"] is not None] + [v for _, v, _, _, _ in ends] + [budget], low=0))
    y = Axis(*padded([100 * max(a, least) for a in accuracies]), 420 - BOTTOM, TOP + 20)
    body = [*frame(x, y, "latency on the device (ms)", f"{run.metric} on val (%)"), *budget_rule(x, y, budget)]
    body += [untrained(x, y, t) for t in trials if t["accuracy"] is None and t["latency_ms"] is not None]
    front = sorted((t["latency_ms"], t["accuracy"]) for t in known if t["pareto"] and t["accuracy"] >= least)
    body.append(polyline(steps([(x(v), y(100 * a)) for v, a in front]), "front"))
    body += [mark("circle" if t["accuracy"] >= least else "down", x(t["latency_ms"]), y(100 * t["accuracy"]), trial_class(t, budget), tip(t)) for t in known]
    best = chosen(run)
    body += [mark("ring", x(best["latency_ms"]), y(100 * best["accuracy"]), "chosen", f"chosen, {tip(best)}")] if best and best["accuracy"] is not None else []
    body += [mark(shape, x(v), y(100 * a), cls, f"{words}: {percent(a)} %, {ms(v)} ms") for shape, v, a, cls, words in ends]
    items = [("circle", "feasible", "trial within the budget"), ("circle", "infeasible", "trial above it"), ("line", "front", "Pareto front"), ("ring", "chosen", "chosen trial")]
    return section(title, legend([*items, *((s, c, w) for s, _, _, c, w in ends)]) + svg(420, body, title), pareto_note(trials, least, known))


def references(run: Run, dense_ms: float) -> list[tuple[str, float, float, str, str]]:
    """(shape, ms, accuracy, class, words) of the three networks. Their ms: the bench's ratio to the dense network, times the search's dense ms."""
    bench = run.bench
    scale = dense_ms / bench["dense"]["stats"]["median"]
    parts = [("diamond", bench["original"], "original", "original"), ("square", bench["dense"], "replaced", "dense (operators replaced)"), ("star", bench, "pruned", "final network, fully trained")]
    found = [(shape, part["stats"]["median"] * scale, run.accuracy(key, "val"), f"net-{key}", words) for shape, part, key, words in parts]
    return [(shape, v, a, cls, words) for shape, v, a, cls, words in found if a is not None]


def budget_rule(x: Axis, y: Axis, budget: float) -> list[str]:
    """The vertical line of the budget with its name above the frame."""
    right = x(budget) > (x.start + x.end) * 0.75
    return [rule(x(budget), y.start, x(budget), y.end - 6, "budget"), text(x(budget) + (-5 if right else 5), y.end - 8, f"budget {ms(budget)} ms", "end" if right else "start", "budget-name")]


def untrained(x: Axis, y: Axis, t: Trial) -> str:
    """A trial that was too slow to be worth training: a tick on the axis."""
    return mark("tick", x(t["latency_ms"]), y.start - 5, "infeasible", tip(t))


def trial_class(t: Trial, budget: float) -> str:
    """Colour of a trial."""
    return "feasible" if meets(t, budget) else "infeasible"


def pareto_note(trials: Sequence[Trial], least: float, known: Sequence[Trial]) -> str:
    """Who isn't in the picture, and how the times compare."""
    words = ["Trials were retrained briefly only, the final network to the end. Every time is relative to the dense network in the same rounds, so busy moments cancel out."]
    idle, failed, low = (sum(1 for _ in found) for found in (
        (t for t in trials if t["accuracy"] is None and t["state"] != "failed"), (t for t in trials if t["state"] == "failed"), (t for t in known if t["accuracy"] < least),
    ))  # fmt: skip
    words += [f"{idle} too slow to be worth training: ticks at the lower edge."] if idle else []
    words += [f"{low} below {percent(least)} %: triangles at the lower edge."] if low else []
    words += [f"{failed} failed and are not shown."] if failed else []
    return " ".join(words)


# History -------------------------------------------------------------------------------------------------------------------------------
def reward(t: Trial, budget: float, alpha: float) -> float | None:
    """What the agent learned from: accuracy - alpha * max(0, latency - budget) / budget."""
    if t["accuracy"] is None or t["latency_ms"] is None:
        return None
    return t["accuracy"] - alpha * max(0.0, t["latency_ms"] - budget) / budget


def history(run: Run) -> str:
    """Reward, accuracy and latency by trial, with the best accuracy within the budget so far."""
    title = "Search, trial by trial"
    if run.trials is None:
        return section(title, missing("trials"))
    doc = run.trials
    trials, budget, alpha = doc["trials"], doc["budget_ms"], doc["config"]["alpha"]
    numbers = [float(t["trial"]) for t in trials]
    x = across(min(numbers, default=1) - 0.5, max(numbers, default=1) + 0.5)
    rewards = [reward(t, budget, alpha) for t in trials]
    accuracies = [None if t["accuracy"] is None else 100 * t["accuracy"] for t in trials]
    body: list[str] = []
    body += panel(x, TOP, trials, rewards, budget, "", "reward", best_so_far(rewards, [True] * len(trials)), least=SPREAD)
    body += panel(x, TOP + 150, trials, accuracies, budget, "", f"{run.metric} (%)", best_so_far(accuracies, [meets(t, budget) for t in trials]), least=100 * SPREAD)
    body += panel(x, TOP + 300, trials, [t["latency_ms"] for t in trials], budget, "trial", "latency (ms)", [], limit=budget)
    items = [("circle", "feasible", "within the budget"), ("circle", "infeasible", "above it"), ("line", "front", "best so far (accuracy: within the budget)"), ("line", "budget-line", "budget")]
    strategy = doc["config"].get("strategy")
    return section(title, legend(items) + svg(TOP + 450 + BOTTOM - 18, body, title), f"Strategy: {strategy}. Reward = accuracy \N{MINUS SIGN} {alpha:g} \N{MULTIPLICATION SIGN} the relative excess over the budget. Triangles: far below the scale.")


def panel(
    x: Axis, top: float, trials: Sequence[Trial], values: Sequence[float | None], budget: float, x_name: str, y_name: str, best: Sequence[float | None], least: float = 0.0, limit: float | None = None
) -> list[str]:
    """One of the stacked panels: a dot a trial, and a line for the best so far or for the limit. ``least``: the range at the top to show in full; far below it is at the edge."""
    known = [v for v in values if v is not None]
    low = floor(known, least) if least else min(known, default=0.0)
    y = Axis(*padded([*(max(v, low) for v in known), *([limit] if limit is not None else [])], 0.1), top + 126, top)
    body = frame(x, y, x_name, y_name, 3, whole=True)
    body += [rule(x.start, y(limit), x.end, y(limit), "budget")] if limit is not None else []
    found = [(x(t["trial"]), y(v)) for t, v in zip(trials, best, strict=False) if v is not None]
    body += [polyline(steps(found), "front")] if found else []
    return body + [mark("circle" if v >= low else "down", x(t["trial"]), y(v), trial_class(t, budget), tip(t)) for t, v in zip(trials, values, strict=True) if v is not None]


def best_so_far(values: Sequence[float | None], allowed: Sequence[bool]) -> list[float | None]:
    """The running maximum over the allowed values; None before the first."""
    best: float | None = None
    found = []
    for value, may in zip(values, allowed, strict=True):
        if may and value is not None:
            best = value if best is None else max(best, value)
        found.append(best)
    return found


# Race and runs -------------------------------------------------------------------------------------------------------------------------
def race(run: Run) -> str:
    """The pruning algorithms that raced, the winner's training."""
    title = "Race of the pruning algorithms"
    if run.pruner is None:
        return section(title, missing("pruner"))
    rungs, failed, winner = run.pruner["rungs"], run.pruner.get("failed", {}), run.pruner["winner"]
    reached = {entry: rung for rung in rungs for entry in rung["race"]}  # the last one of each
    order = sorted(reached, key=lambda entry: (-reached[entry]["epochs"], -reached[entry]["race"][entry]))
    rows = [[f"<b>{esc(e)}</b>" if e == winner else esc(e), "winner" if e == winner else "", *(percent(rung["race"].get(e)) for rung in rungs)] for e in order]
    rows += [[esc(entry), f"failed: {esc(error)}", *([DASH] * len(rungs))] for entry, error in failed.items() if entry not in reached]
    body = table(["entry", "", *(f"{run.metric} val % after {rung['epochs']:g} epochs" for rung in rungs)], rows, left=2) if rungs else ""
    algorithms = [entry.partition("+")[0].partition("@")[0] for entry in order]
    colours = {name: f"c{i % 6}" for i, name in enumerate(sorted(set(algorithms)))}
    curves = [Series(e, curve(reached[e]["curves"][e]), colours[name] + " dashed" * ("+distill" in e), dots=True) for e, name in zip(order, algorithms, strict=True)]
    body += lines(curves, "epoch of the last rung that the entry reached", f"{run.metric} val (%)", title) if any(len(c.points) > 1 for c in curves) else ""
    final = curve(run.pruner["history"])
    body += lines([Series(f"{winner}, to the end", final, "c0", dots=True)], "epoch", f"{run.metric} val (%)", "training of the winner") if len(final) > 1 else ""
    return section(title, body, "Each entry pruned to the same scheme from the same dense weights, in every rung anew; the best went on to the next, longer rung, and the winner was trained to the end. Dashed: with distillation. " + LAG)


def curve(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(epoch, accuracy in percent) of the epochs that were evaluated."""
    return [(float(r["epoch"]), 100 * r["accuracy"]) for r in rows if r.get("accuracy") is not None]


def samples(run: Run) -> str:
    """Every timed run, so that the noise can be seen."""
    bench = run.bench
    parts = [("original", bench["original"]["samples_ms"], "net-original"), ("dense", bench["dense"]["samples_ms"], "net-replaced"), ("pruned", bench["samples_ms"], "net-pruned")]
    top = HIGHEST * max(part["stats"]["median"] for part in (bench, bench["dense"], bench["original"]))
    series = [Series(name, [(float(i), min(v, top)) for i, v in enumerate(values, 1)], cls) for name, values, cls in parts]
    beyond = sum(v > top for _, values, _ in parts for v in values)
    reasons = "".join(f"<li>{esc(r)}</li>" for r in bench["reasons"])
    state = "The measurement is valid." if bench["valid"] else "<strong>The measurement is not valid; its figures are not to be trusted.</strong>"
    stat = ("mean", "median", "p90", "p99", "min", "max", "std", "iqr", "cv")
    rows = [[esc(name), *(f"{100 * s[k]:.1f} %" if k == "cv" else ms(s[k]) for k in stat), ms(part["init_ms"]), ms(part["first_ms"])]
            for name, part in (("original", bench["original"]), ("dense", bench["dense"]), ("pruned", bench)) for s in [part["stats"]]]  # fmt: skip
    figures = table(["ms", *stat, "load", "first run"], rows)
    limit = verdict(run).limit_ms
    note = f"{bench['protocol']['runs']} interleaved rounds; nothing was removed from the figures. " + (f"The budget is {ms(limit)} ms. " if limit else "")
    note += f"{beyond} of the runs took more than {ms(top)} ms and are drawn at the upper edge." if beyond else ""
    return section("Every timed run", f"{lines(series, 'round', 'ms', 'every timed run', low=0)}{figures}<p>{state}</p>{f'<ul>{reasons}</ul>' if reasons else ''}", note)
