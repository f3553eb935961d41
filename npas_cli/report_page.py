"""The report's page: style, order of the sections, provenance. One file, no script, no network; light, dark and print from the same markup."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from npas_cli.charts import esc
from npas_cli.report import NAMES, Run, command
from npas_cli.report_choices import filter_types, preferences, why
from npas_cli.report_devices import devices
from npas_cli.report_search import history, pareto, race, samples
from npas_cli.report_sections import TIMES, emulated, headline, layer_times, replacements, scheme_map, section, table

CSS = """
:root { color-scheme: light dark; --bg: #fff; --ink: #1c2024; --soft: #5c6670; --line: #d9dee3; --faint: #eef1f4; --card: #f7f8fa;
  --blue: #0072b2; --orange: #d98200; --green: #008a64; --red: #c94f00; --purple: #a8568c; --sky: #2f93c8; --grey: #9aa4ae; --good: #00664a; --bad: #a83800; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b42; --faint: #22272c; --card: #1b1f23;
  --blue: #4aa8e0; --orange: #f0ab3c; --green: #2fc297; --red: #f08a4b; --purple: #d991bd; --sky: #8accf0; --grey: #727d88; --good: #4fd0a8; --bad: #ff9a63; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 4px; letter-spacing: -.005em; }
header p { margin: 4px 0 16px; color: var(--soft); }
section { margin-top: 44px; }
.note { color: var(--soft); margin: 0 0 12px; max-width: 76ch; }
.missing { color: var(--soft); background: var(--card); border: 1px dashed var(--line); border-radius: 6px; padding: 12px 16px; }
code { font: 12.5px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.badge { display: inline-block; margin: 0 8px 16px 0; padding: 3px 12px; border-radius: 99px; border: 1px solid currentColor; font-weight: 600; color: var(--soft); }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 0 0 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.tile dt { color: var(--soft); font-size: 13px; } .tile dd { margin: 0; }
.tile b { display: block; font-size: 24px; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; margin-top: 2px; }
.wide { overflow-x: auto; margin: 8px 0 12px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12.5px; border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; white-space: nowrap; vertical-align: bottom; }
td { border-bottom: 1px solid var(--faint); padding: 4px 10px 4px 0; vertical-align: middle; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.networks tbody tr:last-child td { font-weight: 600; }
.layers td, .times td { padding-top: 2px; padding-bottom: 2px; white-space: nowrap; }
.layers td:first-child, .times td:first-child { color: var(--soft); font-variant-numeric: tabular-nums; }
.layers.wrap td:nth-child(n+2), .layers.map td:nth-child(4) { white-space: normal; overflow-wrap: anywhere; } .layers td.n.n { white-space: nowrap; }
.short { display: inline-block; max-width: 190px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; vertical-align: middle; direction: rtl; text-align: left; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--soft); }
.pair { width: 200px; padding: 2px 0; }
.bar { display: block; height: 6px; min-width: 1px; border-radius: 0 2px 2px 0; margin: 1px 0; }
.bar.dense { background: var(--grey); } .bar.pruned { background: var(--blue); }
.meter { display: inline-block; width: 56px; height: 7px; background: var(--faint); border-radius: 2px; overflow: hidden; vertical-align: middle; }
.meter i { display: block; height: 100%; background: var(--soft); }
.chip { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; vertical-align: -1px; opacity: var(--strength); }
.s-none { background: none; border: 1.5px solid var(--grey); } .s-filter { background: var(--orange); } .s-block-punched { background: var(--blue); }
.chip.retyped { outline: 2px solid var(--red); outline-offset: -2px; }
.s-pattern { background: var(--green); } .s-block-based { background: var(--purple); }
.strip { display: flex; gap: 2px; height: 34px; margin: 4px 0 16px; }
.strip .chip { flex: 1 1 0; width: auto; min-width: 2px; height: 100%; margin: 0; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 4px 0 8px; padding: 0; font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 4px; } .legend svg { width: 28px; min-width: 28px; height: 22px; margin: 0; } .legend .bar { width: 22px; }
svg { display: block; width: 100%; height: auto; margin: 4px 0 12px; overflow: visible; }
svg.plot { min-width: 600px; }
svg text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg text.tick { font-size: 11.5px; } svg text.budget-name { fill: var(--bad); font-weight: 600; }
.grid { stroke: var(--faint); } .axis { stroke: var(--line); }
.budget, .budget-line { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; } .front { stroke: var(--blue); }
.mark { stroke-width: 1.75; stroke-dasharray: none; }
.feasible { fill: var(--blue); stroke: var(--bg); stroke-width: 1; } .infeasible { fill: var(--bg); stroke: var(--grey); }
.chosen { stroke: var(--red); stroke-width: 2.5; fill: none; }
.net-original { fill: var(--purple); stroke: var(--purple); } .net-replaced { fill: var(--grey); stroke: var(--grey); } .net-pruned { fill: var(--red); stroke: var(--red); }
.mark.net-original, .mark.net-replaced, .mark.net-pruned { stroke: var(--bg); stroke-width: 1; }
.c0 { stroke: var(--blue); } .c1 { stroke: var(--orange); } .c2 { stroke: var(--green); } .c3 { stroke: var(--purple); } .c4 { stroke: var(--sky); } .c5 { stroke: var(--red); }
.mark.dashed { stroke-dasharray: none; }
.mark.c0 { fill: var(--blue); } .mark.c1 { fill: var(--orange); } .mark.c2 { fill: var(--green); } .mark.c3 { fill: var(--purple); } .mark.c4 { fill: var(--sky); } .mark.c5 { fill: var(--red); }
.dashed { stroke-dasharray: 6 4; }
.line.c0, .line.c1, .line.c2, .line.c3, .line.c4, .line.c5 { fill: none; }
.line.net-original, .line.net-replaced, .line.net-pruned { fill: none; stroke-width: 1.25; }
.plain td { vertical-align: top; } .plain td:last-child { word-break: break-word; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media print {
  :root { --bg: #fff; --ink: #000; --soft: #444; --line: #bbb; --faint: #e4e4e4; --card: #fff; --blue: #0072b2; --orange: #d98200; --green: #008a64; --red: #c94f00;
    --purple: #a8568c; --sky: #2f93c8; --grey: #8c959e; --good: #00664a; --bad: #a83800; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } section { margin-top: 28px; } h2, .note { break-after: avoid; } tr, svg, .tile { break-inside: avoid; } .wide { overflow: visible; }
}
"""


def page(run: Run, title: str) -> str:
    """The whole HTML document; the same bytes for the same artifacts."""
    warning = emulated(run.bench)
    searched = emulated({"device": run.trials}) if run.trials and not warning else ""  # the search may have asked another device than the bench
    parts = [devices(run), searched + pareto(run), searched + history(run), scheme_map(run), why(run), preferences(run), filter_types(run), layer_times(run), race(run), replacements(run), samples(run), provenance(run), notes(run)]
    name = f"{title}: {run.bench['model']['name']}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><title>{esc(name)}</title><style>{CSS}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><main><header><h1>{esc(name)}</h1><p>{esc(device(run))}</p></header>{headline(run)}{warning.join(filter(None, parts))}</main></body></html>\n'


def device(run: Run) -> str:
    """Where the times were taken, in one line."""
    d, target, versions = run.bench["device"], run.bench["target"], run.bench["versions"]
    virtual = ", virtual machine" if d.get("virtual") else ""
    threads = f"{target['threads']} thread{'s' if target['threads'] > 1 else ''}"
    shapes = ", ".join(TIMES.join(map(str, shape)) for shape in run.bench["model"]["inputs"])
    return f"{d['soc']}, {d['cores']} cores{virtual} \N{MIDDLE DOT} {threads}, input {shapes} \N{MIDDLE DOT} {d['os_build']} \N{MIDDLE DOT} {named(versions)}"


def named(versions: dict[str, Any]) -> str:
    """ "npas 0.1.0, torch 2.13.0"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def provenance(run: Run) -> str:
    """Configuration, overrides and hashes: what to compare when two reports differ."""
    documents = {field: getattr(run, field) for field in NAMES if getattr(run, field) is not None}
    overridden = [[f"<code>{esc(key)}</code>", f"<code>{esc(value)}</code>", esc(command(field))] for field, doc in documents.items() for key, value in doc.get("overrides", {}).items()]
    body = table(["overridden on the command line", "value", "in"], overridden, left=3) if overridden else "<p>Every value is that of params.yaml.</p>"
    body += f"<details><summary>Configuration of each stage</summary>{''.join(settings(field, doc['config']) for field, doc in documents.items() if doc.get('config'))}</details>"
    bench = run.bench
    hashes = [("compiled pruned network", bench["model"]["sha256"]), ("compiled dense network", bench["dense"]["sha256"]), ("compiled original network", bench["original"]["sha256"]),
              ("scheme.json", bench["model"]["scheme_sha256"]), ("device", bench["device"]["fingerprint"])]  # fmt: skip
    hashes += [(NAMES[field], hashlib.sha256(Path(NAMES[field]).read_bytes()).hexdigest()) for field in documents if field != "scheme"]
    return section("Configuration and provenance", body + f"<details><summary>SHA-256</summary>{table(['what', 'sha256'], [[esc(a), f'<code>{esc(b)}</code>'] for a, b in hashes], left=2)}</details>")


def settings(field: str, config: dict[str, Any]) -> str:
    """One artifact's configuration as a table."""
    flat = {f"{section_}.{key}" if isinstance(values, dict) else section_: value for section_, values in config.items() for key, value in (values.items() if isinstance(values, dict) else [("", values)])}
    return table([NAMES[field], ""], [[f"<code>{esc(key)}</code>", f"<code>{esc(value)}</code>"] for key, value in flat.items()], left=2, cls="plain")


def notes(run: Run) -> str:
    """What these figures do not say."""
    bench = run.bench
    protocol, correct = bench["protocol"], bench["correctness"]
    cores = ", ".join(map(str, protocol["mask"]))
    words = [
        f"Latency was measured, not modelled: the whole compiled network on {bench['device']['kind']} core {cores}, after at least {protocol['warmup']} runs and {protocol['warmup_seconds']:g} s of warm-up. It holds for this device and this input size only.",
        "The networks took turns in every round, so that a busy moment met them all; ratios are surer than milliseconds. Intervals are bootstrap intervals of the median (of paired rounds for ratios) and cover the noise of this session, not that between sessions.",
        f"Before any timing, the outputs were compared with PyTorch's: largest error {correct['max_abs_err']:.2g}, largest output {correct['max_abs_output']:.3g}.",
        "Each trial of the search was trained once, with one seed: differences of accuracy near the interval of the headline's table may be chance.",
    ]
    if run.split == "test":
        words.append("The search and the race chose by the val images; the headline's accuracy is that of the test images, which nothing was chosen by.")
    if bench["device"].get("virtual"):
        words.append("The device is a virtual machine: others on the same hardware can slow it down without being seen from inside.")
    if bench["thermal"]["frequency_khz"] == []:
        words.append("The core's clock could not be read, so a change of frequency would show only as drift.")
    return section("What to keep in mind", f"<ul>{''.join(f'<li>{esc(w)}</li>' for w in words)}</ul>")
