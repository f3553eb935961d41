"""Regret against the number of evaluations, for every search strategy, on a space of which every candidate was evaluated once (digits_space.py).

    python benchmarks/regret.py [--seeds 20] [--strategies npas,random] [--figure probability|top1] [--first] [--processes 1]
    python benchmarks/regret.py --enumerate        # makes the table anew where it lacks candidates (15 minutes of one core)

The regret after n evaluations is the figure of the best candidate of the space within the budget minus that of the best one found so far; as long as none was found, minus that of the worst one
within the budget. The budget lets a quarter of the candidates pass. "best 1 %" is the number of evaluations until one of the 10 best of the 1,000 was found (200 where it never was).
Strategies run as npas ships them (batch, initial, pool ... of stages.config) and as the search's loop would feed them: what is beyond the budget and its margin has a latency and no accuracy.
"ilp+singles" knows what each layer's choices do alone, as npas search-scheme estimates it (sensitivity.py): these 17 candidates are its first evaluations.
--first begins with the uniform candidates that bracket the budget, as npas search-scheme does; without it every strategy begins with nothing.
Writes benchmarks/results/regret.json, regret.md and regret.svg, the curves. 20 seeds of all strategies take about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.digits_space import Table, enumerate_space, load
from benchmarks.regret_chart import chart
from stages.config import SearchScheme
from stages.search import SAMPLERS, TUNABLES, make_sampler
from stages.search.space import Choices
from stages.search.uniform import level

EVALUATIONS = 200
AT = (25, 50, 100, 200)
TOP = 0.01  # of all candidates
NOT_HERE = ("global-magnitude",)  # the table doesn't know the weights
RESULTS = Path(__file__).parent / "results"


def shipped(strategy: str, **changed: Any) -> dict[str, Any]:
    """The strategy's tunables as npas ships them."""
    defaults = {f.name: f.default for f in fields(SearchScheme) if f.name in TUNABLES[strategy]}
    return defaults | {name: value for name, value in changed.items() if name in defaults}


def play(strategy: str, seed: int, table: Table, first: bool = False, evaluations: int = EVALUATIONS, **changed: Any) -> list[Choices]:
    """The candidates that the strategy evaluates, in order; fewer where it ends by itself."""
    name, _, singles = strategy.partition("+")
    space = table.space.starting_with(bracket(table)) if first else table.space
    space = space.knowing(costs=table.costs(), first=table.singles()) if singles else space
    sampler = make_sampler(name, space, evaluations, table.budget, seed, **shipped(name, **changed))
    while (missing := evaluations - len(sampler.told)) > 0 and (batch := sampler.ask(min(SearchScheme.batch, missing))):
        sampler.tell([table.trial(choices) for choices in batch])
    return list(sampler.told)


def bracket(table: Table) -> list[Choices]:
    """The uniform candidates round the budget: the slowest two within it, then the fastest above it (as stages.search.survey does for a space without ladders)."""
    by_latency = sorted(level(table.space), key=lambda c: table.latency[c])
    within = sum(table.latency[c] <= table.budget for c in by_latency)
    return [*reversed(by_latency[max(0, within - 2) : within]), *by_latency[within : within + 1]] if within else []


def regrets(table: Table, played: list[Choices], evaluations: int = EVALUATIONS) -> tuple[np.ndarray, int]:
    """Regret after 1, 2 ... evaluations, and the number of evaluations until one of the best 1 % was found."""
    feasible = table.feasible()
    best, worst = feasible[0][0], feasible[-1][0]
    good = {c for _, c in feasible[: round(TOP * table.space.size)]}
    found = [table.accuracy[c] if table.latency[c] <= table.budget else worst for c in played]
    found += [worst] * (evaluations - len(found))  # a strategy that ends early keeps what it has
    return best - np.maximum.accumulate(found), next((i for i, c in enumerate(played, 1) if c in good), evaluations)


def measure(strategy: str, seed: int, figure: str, first: bool, evaluations: int) -> tuple[list[float], int, float]:
    """Regrets, evaluations to the best 1 %, and seconds of one run."""
    began, table = time.perf_counter(), load(figure)
    curve, reached = regrets(table, play(strategy, seed, table, first, evaluations), evaluations)
    return curve.tolist(), reached, time.perf_counter() - began


def run(strategies: list[str], seeds: int, figure: str = "probability", first: bool = False, processes: int = 1) -> dict[str, Any]:
    """Every strategy over the seeds: mean regret and its standard error at AT, evaluations to the best 1 % (mean, standard error, median), the mean curve, seconds a run."""
    found = {}
    with ProcessPoolExecutor(processes) as pool:
        for strategy in strategies:
            runs = list(pool.map(partial(measure, strategy, figure=figure, first=first, evaluations=EVALUATIONS), range(seeds)))
            curves, reached = np.array([r[0] for r in runs]), np.array([r[1] for r in runs])
            error = curves.std(0, ddof=1) / np.sqrt(seeds)
            found[strategy] = {
                "regret": {n: float(curves[:, n - 1].mean()) for n in AT}, "error": {n: float(error[n - 1]) for n in AT},
                "to_best_1%": {"mean": float(reached.mean()), "error": float(reached.std(ddof=1) / np.sqrt(seeds)), "median": float(np.median(reached)), "never": int((reached == EVALUATIONS).sum())},
                "curve": curves.mean(0).round(5).tolist(), "seconds": float(np.mean([r[2] for r in runs])),
            }  # fmt: skip
            print(row(strategy, found[strategy]), flush=True)
    return found


def row(strategy: str, r: dict[str, Any]) -> str:
    """One line of the table: regrets in percent."""
    cells = [f"{100 * r['regret'][n]:.2f} ± {100 * r['error'][n]:.2f}" for n in AT]
    top = r["to_best_1%"]
    return f"| {strategy} | {' | '.join(cells)} | {top['mean']:.0f} ± {top['error']:.0f} | {top['median']:.0f} | {r['seconds']:.1f} |"


HEAD = "| strategy | " + " | ".join(f"regret at {n}, %" for n in AT) + " | evaluations to the best 1 %: mean | median | s a run |\n" + "|---" * (len(AT) + 4) + "|"


def goals(found: dict[str, Any]) -> list[str]:
    """What the search promises, and whether it holds."""
    lines = []
    if {"npas", "random"} <= set(found):
        a, b = (found[s]["to_best_1%"] for s in ("npas", "random"))
        for which in ("mean", "median"):
            lines.append(f"{verdict(a[which] <= b[which] / 2)}: npas reaches the best 1 % after {a[which]:.0f} evaluations, random after {b[which]:.0f} ({which})")
    if {"npas", "evolution"} <= set(found):
        for n in AT:
            a, b, error = found["npas"]["regret"][n], found["evolution"]["regret"][n], np.hypot(found["npas"]["error"][n], found["evolution"]["error"][n])
            lines.append(f"{verdict(a <= b + error)}: regret of npas at {n}: {100 * a:.2f} %, of evolution {100 * b:.2f} %, standard error of the difference {100 * error:.2f} %")
    return lines


def verdict(holds: bool) -> str:
    """For the report."""
    return "holds" if holds else "FAILS"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--enumerate", action="store_true", help="evaluate the candidates that the table lacks")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--strategies", default=",".join([*(s for s in SAMPLERS if s not in NOT_HERE), "ilp+singles"]))
    parser.add_argument("--figure", choices=("probability", "top1"), default="probability")
    parser.add_argument("--first", action="store_true", help="begin with the uniform candidates that bracket the budget")
    parser.add_argument("--processes", type=int, default=1)
    a = parser.parse_args()
    if a.enumerate:
        return enumerate_space()
    table = load(a.figure)
    best, worst = table.feasible()[0], table.feasible()[-1]
    head = f"{table.space.size} candidates, {len(table.feasible())} within the budget of {table.budget:.3f} of dense; figure: {a.figure}, {best[0]:.4f} (best) to {worst[0]:.4f} (worst) within it; {a.seeds} seeds"
    print(f"{head}\n\n{HEAD}")
    found = run(a.strategies.split(","), a.seeds, a.figure, a.first, a.processes)
    lines = goals(found)
    print("\n" + "\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    name = f"regret{'-first' if a.first else ''}{'-top1' if a.figure == 'top1' else ''}"
    (RESULTS / f"{name}.json").write_text(json.dumps({"setting": head, "strategies": found, "goals": lines}, indent=1))
    (RESULTS / f"{name}.svg").write_text(chart({strategy: r["curve"] for strategy, r in found.items()}))
    (RESULTS / f"{name}.md").write_text("\n".join([head, "", HEAD, *(row(s, r) for s, r in found.items()), "", *(f"- {line}" for line in lines), ""]))
    return None


if __name__ == "__main__":
    main()
