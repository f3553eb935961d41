"""report.html from invented artifacts: complete, self-contained, escaped, drawable, the same every time."""

from __future__ import annotations

import copy
import html
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from report_artifacts import documents, write

from npas_cli import report
from npas_cli.charts import Axis, floor, padded, steps
from npas_cli.report_sections import count, ms, wilson
from stages.config import Config
from stages.errors import ArtifactError
from stages.progress import Silent


@pytest.fixture()
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def made(artifacts=None, without=(), **options):
        artifacts = documents(**options) if artifacts is None else artifacts
        write(tmp_path, {path: d for path, d in artifacts.items() if path not in without})
        result = report.run(Config(), Silent())
        return result, (tmp_path / "report.html").read_text(encoding="utf-8")

    return made


class Balance(HTMLParser):
    """Every tag that is opened is closed, in order."""

    VOID = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def drawings(page):
    found = re.findall(r"<svg.*?</svg>", page, re.S)
    for text in found:
        ET.fromstring(text)
    return [text for text in found if 'class="plot"' in text]


def test_headline_rows(make):
    result, page = make(ratio=0.45)
    artifacts = documents(ratio=0.45)
    bench = artifacts["bench/latency.json"]
    rows = {row["network"]: row for row in result["rows"]}
    assert list(rows) == ["original", "replaced", "pruned"]
    assert [row["top1"] for row in rows.values()] == [0.978, 0.981, 0.972]  # test split: all three have it
    assert rows["pruned"]["latency_ms"] == bench["stats"]["median"]
    assert rows["pruned"]["ci95"] == bench["stats"]["ci95"]
    assert rows["pruned"]["macs"] == 9_100_000
    assert rows["pruned"]["speedup"] == pytest.approx(bench["speedup"]["ratio"])
    assert rows["replaced"]["speedup"] == 1.0
    assert result["budget_met"] is True
    assert result["budget_ms"] == pytest.approx(0.5 * bench["dense"]["stats"]["median"])
    for figure in ("97.8", "98.1", "97.2", "98.9", ms(bench["stats"]["median"]), ms(bench["dense"]["stats"]["median"]), ms(bench["original"]["stats"]["median"]), "9.1 M", "41.0 M"):
        assert figure in page
    assert "Budget met" in page


@pytest.mark.parametrize(("ratio", "met"), [(0.49, True), (0.51, False)])
def test_a_ratio_is_judged_in_the_rounds_of_the_bench(make, ratio, met):
    artifacts = documents(ratio=ratio)
    bench = artifacts["bench/latency.json"]
    assert (bench["stats"]["median"] / bench["dense"]["stats"]["median"] <= 0.5) is met
    result, page = make(artifacts)
    assert result["budget_met"] is met
    assert ("Budget met" in page) is met
    assert ("Budget not met" in page) is not met


def test_a_budget_in_milliseconds_wins(make):
    assert make(budget_ms=0.5, ratio=0.45)[0] | {"rows": 0} == {"rows": 0, "budget_ms": 0.5, "budget_met": True, "report": "report.html"}
    assert make(budget_ms=0.4, ratio=0.45)[0]["budget_met"] is False


def test_every_layer_scheme_kernel_trial_and_entry_is_there(make):
    _, page = make()
    artifacts = documents()
    text = html.unescape(page)
    for layer in artifacts["bench/latency.json"]["layers"]:
        assert layer["name"] in text
        assert ms(layer["dense_ms"]) in text
        assert layer["kernel"] is None or layer["kernel"] in text
    for entry, accuracy in artifacts["search_pruner/race.json"]["race"].items():
        assert entry in text
        assert f"{100 * accuracy:.1f}" in text
    assert "188 k of 600 k weights stay" in text
    assert "loss is not finite" in text
    for trial in artifacts["search_scheme/trials.json"]["trials"]:
        assert (f"trial {trial['trial']}:" in text) is (trial["latency_ms"] is not None)
    assert "1 failed and are not shown" in text
    for kind in ("filter 2x", "block-punched/16 7x", "pattern/8 2.5x", "block-based/16 5x"):
        assert kind in text
    for replaced in artifacts["replace_ops/graph.json"]["replacements"]:
        assert replaced["layer"] in text
    assert "bench.runs" in text
    assert "other programs took the core away" in text
    assert "f1" * 32 in text


def test_the_page_is_self_contained_and_well_formed(make):
    _, page = make()
    checker = Balance()
    checker.feed(page)
    assert checker.open == []
    assert checker.links == []
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"url\(|@import|<script|<link|<img|<iframe", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert len(drawings(page)) == 5


def test_runs_that_took_too_long_to_draw_are_counted_not_hidden(make):
    artifacts = documents()
    artifacts["bench/latency.json"]["samples_ms"][3:6] = [50.0, 60.0, 70.0]
    _, page = make(artifacts)
    assert "3 of the runs took more than" in page
    assert "of the runs took more than" not in make()[1]


def test_equal_artifacts_give_equal_bytes(make):
    assert make()[1] == make()[1]
    assert make()[1] != make(seed=1)[1]


@pytest.mark.parametrize(("layers", "trials"), [(60, 1), (1, 200), (18, 30)])
def test_sizes(make, layers, trials):
    _, page = make(layers=layers, trials=trials)
    assert len(drawings(page)) == 5
    assert page.count('class="chip') >= 2 * layers
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower().split()


def test_no_point_leaves_its_frame(make):
    for text in drawings(make()[1]):
        _, _, width, height = (float(v) for v in ET.fromstring(text).attrib["viewBox"].split())
        for circle in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height


def test_hostile_names_are_escaped(make):
    evil = "<script>alert('x')</script>\"&"
    artifacts = documents(name=evil)
    scheme = artifacts["search_scheme/scheme.json"]["layers"]
    first = next(iter(scheme))
    scheme[evil] = scheme.pop(first)
    artifacts["replace_ops/graph.json"]["layers"][0] |= {"module": evil, "name": evil}
    artifacts["replace_ops/graph.json"]["replacements"][0]["layer"] = evil
    artifacts["bench/latency.json"]["layers"][0] |= {"name": evil, "kernel": evil}
    artifacts["bench/latency.json"]["device"] |= {"soc": evil, "os_build": evil}
    artifacts["bench/latency.json"]["reasons"] = [evil]
    artifacts["bench/latency.json"]["overrides"] = {evil: evil}
    artifacts["search_pruner/race.json"]["failed"] = {evil: evil}
    artifacts["search_scheme/trials.json"]["trials"][0]["state"] = evil
    for field in ("search_scheme/trials.json", "search_pruner/race.json"):
        artifacts[field]["metric"] = evil
    _, page = make(artifacts)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;") >= 10
    checker = Balance()
    checker.feed(page)
    assert checker.open == []
    drawings(page)


OPTIONAL = [path for path in documents() if path != "bench/latency.json"]


@pytest.mark.parametrize("path", OPTIONAL)
def test_a_missing_stage_leaves_a_page_that_says_what_to_run(make, path):
    _, page = make(without=(path,))
    drawings(page)
    if path in ("search_scheme/scheme.json", "search_scheme/trials.json", "replace_ops/graph.json", "replace_ops/metrics.json", "search_pruner/race.json"):
        assert f"npas {path.split('/')[0].replace('_', '-')}</code> makes it" in page


def test_only_a_bench(make):
    result, page = make(without=OPTIONAL)
    assert result["budget_met"] is None
    assert result["budget_ms"] is None
    assert [row["top1"] for row in result["rows"]] == [None] * 3
    assert "No budget is known" in page


def test_without_a_bench_there_is_no_report(make, tmp_path):
    with pytest.raises(ArtifactError, match="bench/latency.json does not exist") as caught:
        make(without=("bench/latency.json",))
    assert "npas bench" in caught.value.hint
    assert not (tmp_path / "report.html").exists()


def test_damaged_and_foreign_artifacts(make, tmp_path):
    make()
    (tmp_path / "search_scheme/trials.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        report.run(Config(), Silent())
    (tmp_path / "search_scheme/trials.json").write_text(json.dumps({"schema": "npas-trials/9"}))
    with pytest.raises(ArtifactError, match="npas-trials/9"):
        report.run(Config(), Silent())


def test_an_invalid_measurement_and_an_emulated_device_are_said(make):
    artifacts = documents()
    artifacts["bench/latency.json"] |= {"valid": False, "reasons": ["too few runs: 3 of 10"]}
    artifacts["bench/latency.json"]["device"]["emulated"] = True
    _, page = make(artifacts)
    assert "not to be trusted" in page
    assert "too few runs: 3 of 10" in page
    assert page.count("EMULATED, not a phone") >= 5


def test_further_devices_of_the_bench_have_a_table_and_an_emulated_one_is_named(make):
    artifacts = documents()
    _, alone = make(artifacts)
    assert "<h2>Devices</h2>" not in alone
    bench = artifacts["bench/latency.json"]
    other = bench | {"device": bench["device"] | {"kind": "phone", "model": "lab <phone>", "emulated": True}}
    result, page = make(artifacts | {"bench/latency.json": bench | {"others": [other]}})
    assert [row["remark"] for row in result["devices"]] == ["", "EMULATED, not a phone"]
    assert "<h2>Devices</h2>" in page and "lab &lt;phone&gt; (phone)" in page and page.count("EMULATED, not a phone") == 1


def test_a_search_on_an_emulated_phone_is_named_where_its_trials_are(make):
    artifacts = documents()
    artifacts["search_scheme/trials.json"]["emulated"] = True
    assert make(artifacts)[1].count("EMULATED, not a phone") == 2


def test_validation_accuracy_where_no_test_split_is(make):
    artifacts = copy.deepcopy(documents())
    del artifacts["search_pruner/race.json"]["accuracy"]["pruned"]["test"]
    result, page = make(artifacts)
    assert [row["top1"] for row in result["rows"]] == [0.989, 0.987, 0.982]
    assert "top1 val %" in page


def test_wilson_against_published_values():
    """Newcombe 1998, table I: 81 of 263 and 0 of 20."""
    assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0.0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))


def test_numbers_on_screen():
    assert [ms(v) for v in (0.01234, 0.4567, 12.3456, 123.4567, None)] == ["0.0123", "0.457", "12.346", "123.5", "\N{EN DASH}"]
    assert [count(v) for v in (999, 1280, 524288, 9_100_000, 15.5e9, None)] == ["999", "1.3 k", "524 k", "9.1 M", "15.5 G", "\N{EN DASH}"]


def test_axes():
    axis = Axis(0.0, 1.0, 100.0, 0.0)
    assert axis(0.25) == 75.0
    assert axis(2.0) == 0.0  # held inside the frame
    assert axis.ticks(5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [axis.label(v, 5) for v in (0.2, -0.4)] == ["0.2", "\N{MINUS SIGN}0.4"]
    assert [Axis(0, 30, 0, 1).label(v, 6) for v in Axis(0, 30, 0, 1).ticks(6)] == ["0", "5", "10", "15", "20", "25", "30"]
    low, high = padded([3.0])
    assert low < 3.0 < high
    assert padded([0.1, 1.0], low=0)[0] == pytest.approx(0.055)
    assert padded([]) == pytest.approx((-0.05, 1.05))


def test_far_outliers_are_cut_and_near_ones_kept():
    assert floor([0.98, 0.97, 0.975, 0.1], 0.05) == pytest.approx(0.93)
    assert floor([0.98, 0.97, 0.96], 0.05) == 0.96


def test_stairs():
    assert steps([(0, 1), (2, 3), (4, 3)]) == [(0, 1), (2, 1), (2, 3), (4, 3), (4, 3)]


def sections(page):
    """Heading -> text of each section, tags removed."""
    found = {}
    for part in re.findall(r"<section>(.*?)</section>", page, re.S):
        heading = re.search(r"<h2>(.*?)</h2>", part)[1]
        found[html.unescape(heading)] = html.unescape(re.sub(r"<[^>]*>", " ", part))
    return found


def test_the_winner_is_explained_layer_by_layer(make):
    artifacts = documents()
    rows = artifacts["search_scheme/trials.json"]["ablation"]
    rows[:] = [rows[0], rows[len(rows) // 2], rows[-1]]  # the one in the middle failed
    rows[0] |= {"layer": "cheap", "accuracy_with": 0.70, "accuracy_without": 0.71, "latency_with": 0.4, "latency_without": 0.5, "error": None}
    rows[2] |= {"layer": "dear", "accuracy_with": 0.70, "accuracy_without": 0.80, "latency_with": 0.4, "latency_without": 0.32, "error": None}
    text = sections(make(artifacts)[1])["Why this scheme"]
    assert text.index("cheap") < text.index("dear")  # the most accuracy last
    minus = "\N{MINUS SIGN}"
    for figure in ("+1.0", "+10.0", "+20.0 %", f"{minus}25.0 %", "RunnerCrashed: <SIGILL>"):
        assert figure in text


def test_preferences_rank_the_choices_and_place_the_winners(make):
    artifacts = documents()
    name = next(n for n, c in artifacts["search_scheme/trials.json"]["trials"][-1]["choices"].items() if c == "filter 2x")
    artifacts["search_scheme/trials.json"]["preferences"] = {name: {"none": 0.1, "filter 2x": 0.7, "filter 5x": 0.9, "pattern/8 3x": 0.2}}
    text = " ".join(sections(make(artifacts)[1])["What the search came to prefer"].split())
    assert "filter 5x filter 2x filter 2x 2 of 4" in text


def test_filter_types_are_named_with_their_errors_and_marked_in_the_map(make):
    artifacts = documents()
    _, page = make(artifacts)
    text, (retyped, pruned) = sections(page), (1, 3)
    layers = artifacts["search_scheme/scheme.json"]["layers"]
    names = list(layers)
    assert f"{100 * artifacts['search_scheme/trials.json']['reconstruction'][0]['error']:.2f}" in text["Filter types"]
    assert f"{names[retyped]} " in text["Filter types"]
    assert f"3x3dw-1x1|{layers[names[pruned]]['scheme']}" in text["Scheme of each layer"]
    assert page.count("retyped") >= 2
    assert f"chosen, trial {len(artifacts['search_scheme/trials.json']['trials'])}:" in html.unescape(page)  # found by its labels, filter types included


def test_the_chosen_trial_is_found_when_a_layer_without_a_choice_is_pruned_with_others(make):
    artifacts = documents()
    trials, layers = artifacts["search_scheme/trials.json"]["trials"], artifacts["search_scheme/scheme.json"]["layers"]
    follower = next(name for name, entry in layers.items() if entry["scheme"] == "filter")
    for trial in trials:
        del trial["choices"][follower]
    assert f"chosen, trial {len(trials)}:" in html.unescape(make(artifacts)[1])


def test_a_search_without_reasons_has_no_empty_sections(make):
    artifacts = documents()
    for key in ("ablation", "preferences", "reconstruction"):
        artifacts["search_scheme/trials.json"][key] = None
    found = sections(make(artifacts)[1])
    assert {"Why this scheme", "What the search came to prefer", "Filter types"}.isdisjoint(found)
