"""The devices of a bench beside each other: rows for the screen and a section for the page. Imports report and report_sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npas_cli.charts import esc
from npas_cli.report import Run
from npas_cli.report_sections import DASH, TIMES, interval, ms, section, table

EMULATED = "EMULATED, not a phone"
HEAD = ("device", "pruned ms", "95% interval", "dense ms", "speed-up", "95% interval", "remark")


def device_rows(bench: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a device, in the order of the bench: ``remark`` says what keeps its figures from being believed, "" for nothing."""
    return [
        {
            "device": f"{record['device'].get('model') or record['device']['kind']} ({record['device']['kind']})", "latency_ms": record["stats"]["median"], "ci95": record["stats"]["ci95"],
            "dense_ms": record["dense"]["stats"]["median"], "speedup": record["speedup"]["ratio"], "speedup_ci95": record["speedup"]["ci95"],
            "remark": EMULATED if record["device"].get("emulated") else "" if record["valid"] else "not to be trusted",
        }
        for record in (bench, *bench.get("others", ()))
    ]  # fmt: skip


def devices(run: Run) -> str:
    """The section; nothing where the bench had one device."""
    if not run.bench.get("others"):
        return ""
    lines = [
        [esc(row["device"]), ms(row["latency_ms"]), interval(row["ci95"]), ms(row["dense_ms"]), f"{row['speedup']:.2f}{TIMES}",
         f"{row['speedup_ci95'][0]:.2f} {DASH} {row['speedup_ci95'][1]:.2f}", f"<b>{esc(row['remark'])}</b>" if row["remark"] else ""]
        for row in device_rows(run.bench)
    ]  # fmt: skip
    return section("Devices", table(HEAD, lines), "The same networks, compiled for each device and measured there. Everything else on this page is of the first one.")
