"""npas search-scheme: choose filter type, pruning scheme and rate of every layer under the latency budget. Reads replace_ops/model.pt and probe/device.json; writes search_scheme/*."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from stages.artifacts import load_checkpoint, plain, read_json, save_checkpoint, sha256, state_dir, state_key, write_csv, write_json
from stages.config import Config
from stages.progress import Progress

DEVICE = "probe/device.json"


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Search, save what was found, return the metrics. Continues after kill -9 and when ``trials`` is raised; InfeasibleBudget when no candidate meets the budget."""
    from stages.devices.known import check_known
    from stages.schemes import DENSE
    from stages.search import TUNABLES, evaluate, make_sampler
    from stages.search.ablation import ablate
    from stages.search.candidate import searched_types
    from stages.search.evaluator import Rules
    from stages.search.loop import search
    from stages.search.one_for_all import knowing_one_for_all
    from stages.search.results import history_rows, infeasible, metrics, preferences, trial_rows
    from stages.search.scheme_space import focus, scheme_space
    from stages.search.sensitivity import estimate
    from stages.search.trials import Journal, code_version

    began, c = time.monotonic(), config.search_scheme
    device = read_json(DEVICE)
    check_known(config.probe.device, device, progress, config.probe.hosts)
    task, network, graph = evaluate.open_network(config)
    inputs = {name: sha256(name) for name in (evaluate.MODEL, DEVICE)}
    space = scheme_space(graph, c.schemes, c.rates, c.blocks, c.min_share, c.channel_blocks, searched_types(network, graph, c))
    if c.strategy in ("uniform", "global-magnitude"):
        space = knowing_one_for_all(space, network, c.schemes, c.rates, c.blocks)
    tunables = {f.name: getattr(c, f.name) for f in fields(c) if f.name in TUNABLES[c.strategy]}
    folder = state_dir("search_scheme", state_key(c, config.task, device["fingerprint"], evaluate.how_measured(config), inputs[evaluate.MODEL], code_version()))
    candidates = evaluate.open_candidates(config, task, network, graph, progress)
    with (
        Journal(folder / "journal.jsonl", space.space) as journal,
        evaluate.open_evaluator(config, task, candidates, space, journal, progress) as (evaluator, dense_ms, budget_ms),
    ):
        if device["emulated"]:
            progress.say(f"{config.probe.device} is EMULATED, not a phone: its milliseconds mean nothing")
        progress.say(f"dense {dense_ms:.3g} ms, budget {budget_ms:.3g} ms, {len(space.layers)} of {len(graph.prunable)} prunable layers are searched")
        rules = Rules(budget_ms, c.trials, c.batch, c.margin, c.early_stop_confidence if c.early_stop else None, round(c.slow_trials * c.trials))
        known = space.space
        if "ilp" in (c.strategy, tunables.get("warm_start")):
            known = known.knowing(costs=estimate(known, evaluator, journal, progress))
        outcome = search(
            known, lambda s: make_sampler(c.strategy, focus(s, s.first), c.trials, budget_ms, c.seed, **tunables), evaluator, journal, rules, progress
        )
        names = [layer.module for layer in space.layers]
        ablation = ablate(outcome.best.choices, names, DENSE, evaluator, journal, progress) if c.ablate and outcome.best else []

    record = {"config": plain(c)} | ({"overrides": plain(overrides)} if overrides else {})
    found = metrics(outcome, dense_ms, budget_ms) | {"metric": task.metric_name, "minutes": (time.monotonic() - began) / 60}
    write_json(
        "search_scheme/trials.json",
        {
            "metric": task.metric_name, "budget_ms": budget_ms, "dense_ms": dense_ms, "emulated": device["emulated"], "trials": trial_rows(outcome.trials, space),
            "reconstruction": candidates.reconstructed.rows(), "preferences": preferences(outcome.sampler, space), "ablation": ablation, **record,
        },  # fmt: skip
    )
    write_csv("search_scheme/history.csv", history_rows(outcome.trials, budget_ms))
    write_json("search_scheme/metrics.json", found | ({"overrides": plain(overrides)} if overrides else {}))
    if outcome.best is None:
        for name in ("scheme.json", "network.pt"):
            Path("search_scheme", name).unlink(missing_ok=True)
        raise infeasible(outcome, budget_ms)
    best = outcome.best
    progress.say(
        f"{task.metric_name} {100 * (best.accuracy or 0):.1f} at {best.latency_ms:.3g} ms, {found['speedup']:.2f} times as fast as dense; {found['feasible']} of {len(outcome.trials)} trials met the budget"
    )
    scheme, base = space.scheme(best.choices), load_checkpoint(evaluate.MODEL)
    winner = candidates.build(scheme)
    save_checkpoint("search_scheme/network.pt", {
        "state_dict": winner.module.state_dict(), "model": base["model"], "replacements": base["replacements"], "filter_types": scheme.filter_types, **record,
    })  # fmt: skip
    budget = {"ms": c.budget_ms, "ratio": c.budget_ratio if c.budget_ms is None else None}
    write_json(
        "search_scheme/scheme.json",
        {"target": config.probe.device, "budget": budget, **scheme.to_json(), "orders": plain(winner.orders), "inputs": inputs, **record},
    )
    return found
