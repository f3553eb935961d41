"""From samples to the tables of the README: statistics, JSON and Markdown. Imports the standard library only."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.catalog import Engine
from benchmarks.peers.contest import SPINNING, Entry

OWN = ("npas", "npas-pruned")
RATIOS = {
    "": (("median", "medians"), ("min", "minimums")),
    "cpu_": (("cpu_median", "medians"), ("cpu_min", "minimums")),
}  # by what is timed: elapsed or CPU time
BUSY = 0.1  # cores used by others, above which the table says so


def statistics_of(entry: Entry) -> dict[str, Any]:
    """What the JSON keeps of an engine on one network: medians and minimums in milliseconds, and why there are none."""
    row: dict[str, Any] = {**entry.facts, "failed": entry.failed, "runs": len(entry.wall_ms)}
    if entry.wall_ms:
        row |= {
            "median_ms": statistics.median(entry.wall_ms),
            "min_ms": min(entry.wall_ms),
            "cpu_median_ms": statistics.median(entry.cpu_ms),
            "cpu_min_ms": min(entry.cpu_ms),
            "idle_load": entry.idle_load,
        }
    return row


def ratios(rows: dict[str, dict[str, Any]], own: str) -> dict[str, Any]:
    """``own`` against the fastest peer: {"best": name by median, "median": r, "min": r, "cpu_median": r, "cpu_min": r}; {} where either side is missing."""
    peers = {name: row for name, row in rows.items() if name not in OWN and usable(row)}
    if not peers or not usable(rows.get(own, {})):
        return {}
    found: dict[str, Any] = {"best": min(peers, key=lambda name: peers[name]["median_ms"])}
    for key in ("median_ms", "min_ms", "cpu_median_ms", "cpu_min_ms"):
        found[key.removesuffix("_ms")] = rows[own][key] / min(row[key] for row in peers.values())
    return found


def usable(row: dict[str, Any]) -> bool:
    """Measured, and not failed halfway."""
    return "median_ms" in row and not row["failed"]


@dataclasses.dataclass
class Report:
    """Everything measured so far: ``results[threads][network][engine]``."""

    machine: dict[str, Any]
    engines: Sequence[Engine]
    rates: dict[str, float]
    results: dict[int, dict[str, dict[str, dict[str, Any]]]] = dataclasses.field(default_factory=dict)
    others: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)  # cores that other processes used meanwhile

    def add(self, threads: int, network: str, entries: dict[str, Entry], others: float) -> None:
        """The outcome of one contest."""
        self.others.setdefault(threads, {})[network] = others
        self.results.setdefault(threads, {})[network] = {name: statistics_of(entry) for name, entry in entries.items()}

    def json(self) -> str:
        """All numbers."""
        compared = {
            threads: {network: {own: ratios(rows, own) for own in OWN} for network, rows in networks.items()} for threads, networks in self.results.items()
        }
        document = {"machine": self.machine, "rates": self.rates, "results": self.results, "npas_over_best": compared, "cores_used_by_others": self.others}
        return json.dumps(document, indent=1) + "\n"

    def markdown(self) -> str:
        """One table for each thread count, then what went wrong. One thread's CPU time has a table of its own where other processes took the processor away.

        On several threads it means nothing: they spin.
        """
        tables = []
        for threads in self.results:
            tables.append(self._table(threads, ""))
            if threads == 1 and self._disturbed(threads):
                tables.append(self._table(threads, "cpu_"))
        return "\n".join([self._heading(), *tables, *self._notes()])

    def _disturbed(self, threads: int) -> dict[str, float]:
        return {network: others for network, others in self.others[threads].items() if others > BUSY}

    def _heading(self) -> str:
        m = self.machine
        return (
            f"{m['processor']}, {m['cores']} cores; fp32, batch 1, 224x224, random weights with calibrated batch norms. Medians in milliseconds, interleaved rounds"
            f" ({m['rounds']} rounds of {m['runs']} runs), the best of the other engines bold. Every output was compared with PyTorch's.\n"
        )

    def _table(self, threads: int, kind: str) -> str:
        """``kind`` is "" for elapsed time, "cpu_" for CPU time."""
        key, networks = f"{kind}median_ms", self.results[threads]
        lines = [
            f"### {threads} thread{'s' if threads > 1 else ''}{', CPU time' if kind else ''}\n",
            "| engine | " + " | ".join(networks) + " |",
            "|---" + "|---:" * len(networks) + "|",
        ]
        best = {network: min((r[key] for name, r in rows.items() if name not in OWN and usable(r)), default=None) for network, rows in networks.items()}
        for engine in self.engines:
            rows = [networks[network].get(engine.name) for network in networks]
            if not any(rows):
                continue
            version = next((r["version"] for r in rows if r and r.get("version")), "")
            title = f"{engine.title} {version}".strip() if engine.is_peer else f"**{engine.title}**"
            lines.append(f"| {title} | " + " | ".join(_cell(row, key, best[network]) for network, row in zip(networks, rows, strict=True)) + " |")
        for own, label in zip(OWN, ("dense", "pruned"), strict=True):
            found = [ratios(rows, own) for rows in networks.values()]
            if any(found):
                for ratio, word in RATIOS[kind]:
                    cells = [f"{r[ratio]:.2f}" if r else "–" for r in found]
                    lines.append(f"| npas {label} / best engine ({word}) | " + " | ".join(cells) + " |")
        if any(self.rates[n] > 1 for n in networks) and any("npas-pruned" in rows for rows in networks.values()):
            lines.append("| pruning rate | " + " | ".join(f"{self.rates[n]:g}x" for n in networks) + " |")
        disturbed = self._disturbed(threads)
        if disturbed and not kind:
            lines.append("\nThe machine was busy: meanwhile other processes used " + ", ".join(f"{o:.1f} cores ({n})" for n, o in disturbed.items()) + ".")
        return "\n".join(lines) + "\n"

    def _notes(self) -> list[str]:
        """What a reader of the tables must know, each sentence once with all the networks that it is true of."""
        found: dict[tuple[str, str], list[str]] = {}
        for threads, networks in self.results.items():
            for network, rows in networks.items():
                for engine in self.engines:
                    for text in _remarks(rows.get(engine.name, {})):
                        found.setdefault((engine.title, text), []).append(f"{network} on {threads}")
        return [f"- {title}: {text} ({', '.join(where)})." for (title, text), where in found.items()]


def _remarks(row: dict[str, Any]) -> list[str]:
    remarks = [row["note"]] if row.get("note") else []
    if row.get("failed"):
        remarks.append(row["failed"].rstrip("."))
    if row.get("idle_load", 0.0) > SPINNING:
        remarks.append("used the processor between its turns, which slowed the others")
    return remarks


def _cell(row: dict[str, Any] | None, key: str, best: float | None) -> str:
    if row is None:
        return "–"
    if not usable(row):
        return row["failed"].partition(":")[0] if row["failed"].startswith("not installed") else "failed"
    text = f"{row[key]:.1f}" if row[key] >= 10 else f"{row[key]:.2f}"
    return f"**{text}**" if row[key] == best else text
