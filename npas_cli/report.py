"""npas report: one self-contained page about the whole run. Reads artifacts only (JSON), draws no conclusion that they don't hold; equal artifacts give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts import MAKER, read_json, write_atomic
from stages.config import Config
from stages.progress import Progress

Document = Mapping[str, Any]
NAMES = {  # field of Run -> its file
    "bench": "bench/latency.json",
    "pretrain": "pretrain/metrics.json",
    "replace": "replace_ops/metrics.json",
    "graph": "replace_ops/graph.json",
    "scheme": "search_scheme/scheme.json",
    "search": "search_scheme/metrics.json",
    "trials": "search_scheme/trials.json",
    "pruner": "search_pruner/race.json",
    "manifest": "compile/host/manifest.json",
}
TITLES = {"original": "original", "replaced": "operators replaced (dense)", "pruned": "pruned"}


@dataclass(frozen=True)
class Run:
    """What the pipeline left behind. Only ``bench`` is always there; the others are None when their stage has not run."""

    bench: Document
    pretrain: Document | None = None
    replace: Document | None = None
    graph: Document | None = None
    scheme: Document | None = None
    search: Document | None = None
    trials: Document | None = None
    pruner: Document | None = None
    manifest: Document | None = None

    @property
    def split(self) -> str:
        """The images that the headline's accuracies were measured on: test, which no stage chose anything by, where all three networks have it."""
        return "test" if all(a is None or "test" in a for a in self._accuracies.values()) else "val"

    @property
    def _accuracies(self) -> dict[str, Document | None]:
        reached = self.replace["accuracy"] if self.replace else {}
        original = self.pretrain["accuracy"] if self.pretrain else reached.get("before")
        return {"original": original, "replaced": reached.get("after"), "pruned": self.pruner["accuracy"]["pruned"] if self.pruner else None}

    def accuracy(self, network: str, split: str = "") -> float | None:
        """Fraction 0..1 of "original", "replaced" or "pruned"; None when it isn't known."""
        found = self._accuracies[network]
        return None if found is None else found.get(split or self.split)

    @property
    def metric(self) -> str:
        """The word for the accuracy, e.g. top1."""
        return next((d["metric"] for d in (self.pruner, self.replace, self.pretrain) if d and "metric" in d), "accuracy")


def load() -> Run:
    """The artifacts of the current folder. ArtifactError when bench has not run, or a file is damaged or of another version."""
    documents = {field: read_json(path) for field, path in NAMES.items() if field == "bench" or Path(path).exists()}
    return Run(**documents)


def command(field: str) -> str:
    """What makes the artifact of a field of Run: ``npas search-scheme``."""
    return f"npas {MAKER[NAMES[field].split('/')[0]]}"


def rows(run: Run) -> list[dict[str, Any]]:
    """The headline: one row a network, with ``speedup`` against the dense one (operators replaced, unpruned) of the same rounds."""
    bench = run.bench
    dense = bench["dense"]["stats"]["median"]
    parts = {"original": (bench["original"], bench["original"]["macs"]), "replaced": (bench["dense"], bench["dense"]["macs"]), "pruned": (bench, bench["model"]["macs"])}
    return [
        {
            "network": name, "top1": run.accuracy(name), "latency_ms": part["stats"]["median"], "ci95": part["stats"]["ci95"], "macs": macs,
            "speedup": dense / part["stats"]["median"],
        }
        for name, (part, macs) in parts.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether the benched network keeps the budget. ``limit_ms`` is the budget in ms of the bench session; ``met`` is None when no budget is known."""

    ms: float | None
    ratio: float | None
    limit_ms: float | None
    met: bool | None


def verdict(run: Run) -> Verdict:
    """A budget in ms is compared with the pruned network's median; a ratio with the ratio of the medians of the same interleaved rounds."""
    budget = run.scheme["budget"] if run.scheme else {}
    ms, ratio = budget.get("ms"), budget.get("ratio")
    pruned, dense = run.bench["stats"]["median"], run.bench["dense"]["stats"]["median"]
    limit = ms if ms is not None else ratio * dense if ratio is not None else None
    return Verdict(ms, ratio, limit, None if limit is None else pruned <= limit)


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Write report.html; returns the headline rows, the budget in ms of the bench session, whether it is met, and the path."""
    from npas_cli.report_devices import device_rows
    from npas_cli.report_page import page

    found = load()
    content = page(found, config.report.title).encode()

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    path = write_atomic("report.html", write)
    judged = verdict(found)
    return {"rows": rows(found), "budget_ms": judged.limit_ms, "budget_met": judged.met, "report": str(path)} | ({"devices": device_rows(found.bench)} if found.bench.get("others") else {})
