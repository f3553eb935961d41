"""Flags come from the configuration; values from default < params.yaml < -S < flag; every wrong one is refused with a way on."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml
from cli_kit import Install, Run

from npas_cli import app, options
from npas_cli.commands import BESIDE, COMMANDS
from stages.config import Config, fields
from stages.params import load


def flags_of(name: str) -> dict[str, list[str]]:
    command = typer.main.get_command(app.app).commands[name]  # type: ignore[attr-defined]
    return {parameter.name: [*parameter.opts, *parameter.secondary_opts] for parameter in command.params}


@pytest.mark.parametrize("command", (*COMMANDS, *BESIDE), ids=lambda command: command.section)
def test_every_field_is_a_flag_with_its_help_and_default(command, npas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    given = flags_of(command.name)
    help = npas(command.name, "--help")
    assert help.code == 0
    for key, field in fields(command.section).items():
        word = key.replace("_", "-")
        assert given[key] == [*filter(None, [field.metadata["flag"]]), f"--{word}", *([f"--no-{word}"] if isinstance(field.default, bool) else [])]
        assert field.metadata["help"] in help.out
        assert all(choice in help.out for choice in field.metadata["choices"])
    assert set(given) - set(fields(command.section)) - {"help"} <= {"params", "sets", "show_config", "save_params", "device", "as_json", "quiet", "verbose"}


@pytest.mark.parametrize("command", (*COMMANDS, *BESIDE), ids=lambda command: command.section)
def test_help_tells_what_is_read_and_written_and_an_example_that_parses(command, npas: Run, monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    help = npas(command.name, "--help").out
    assert all(file in help for file in (*command.reads, *command.writes)) and command.example in help
    program, *arguments = command.example.split()
    assert program == "npas" and npas(*arguments, "--show-config", "--json").code == 0


def test_rich_markup_eats_nothing() -> None:
    """Help texts hold brackets such as [0] and [x.y], which Rich would take for markup."""
    kind, option = options.field_flag("bench", "cpus")
    from rich.text import Text

    assert "e.g. [0]" in Text.from_markup(option.help).plain


def test_values_reach_the_stage_with_flag_over_set_over_file(stage: Install, npas: Run, project: Path) -> None:
    bench = stage("bench")
    (project / "params.yaml").write_text("bench: {runs: 20, warmup: 21, session: 22}\ntask: {seed: 5}\n")
    assert npas("bench", "-S", "bench.warmup=31", "-S", "bench.session=32", "--session", "43", "-S", "task.model=mobilenet_v2").code == 0
    config, overrides = bench.calls[0]
    assert (config.bench.runs, config.bench.warmup, config.bench.session, config.task.seed, config.task.model) == (20, 31, 43, 5, "mobilenet_v2")
    assert overrides == {"bench.warmup": 31, "bench.session": 43, "task.model": "mobilenet_v2"}


def test_without_params_yaml_the_defaults_hold_and_a_named_file_must_exist(stage: Install, npas: Run, project: Path) -> None:
    bench = stage("bench")
    assert npas("bench").code == 0 and bench.config == Config()
    (project / "other.yaml").write_text("bench: {runs: 33}\n")
    assert npas("bench", "--params", "other.yaml").code == 0 and bench.config.bench.runs == 33
    missing = npas("bench", "--params", "none.yaml")
    assert missing.code == 2 and "none.yaml" in missing.err


@pytest.mark.parametrize("typed", [["--rates", "2,3,5"], ["--rates", "2", "--rates", "3,5"], ["--rates", "[2, 3, 5]"], ["-S", "search_scheme.rates=[2,3,5]"]])
def test_lists_are_typed_with_commas_or_repeated(typed: list[str], stage: Install, npas: Run) -> None:
    search = stage("search_scheme")
    assert npas("search-scheme", *typed).code == 0
    assert search.config.search_scheme.rates == (2.0, 3.0, 5.0)


def test_an_empty_list_can_be_typed(stage: Install, npas: Run, project: Path) -> None:
    bench = stage("bench")
    (project / "params.yaml").write_text("bench: {cpus: [1]}\n")
    assert npas("bench").code == 0 and bench.config.bench.cpus == (1,)
    assert npas("bench", "--cpus", "").code == 0 and bench.config.bench.cpus == ()


def test_scientific_notation_is_a_number_in_every_place(stage: Install, npas: Run, project: Path) -> None:
    pretrain = stage("pretrain")
    (project / "params.yaml").write_text("pretrain: {lr: 1e-3, weight_decay: 1e-05}\n")
    assert npas("pretrain", "-S", "pretrain.label_smoothing=1e-2").code == 0
    assert (pretrain.config.pretrain.lr, pretrain.config.pretrain.weight_decay, pretrain.config.pretrain.label_smoothing) == (0.001, 0.00001, 0.01)


def test_device_sets_the_probe_section_of_commands_that_measure(stage: Install, npas: Run) -> None:
    search, bench = stage("search_scheme"), stage("bench")
    assert npas("search-scheme", "--device", "phone").code == 0
    assert search.config.probe.device == "phone" and search.calls[0][1] == {"probe.device": "phone"}
    assert npas("pretrain", "--device", "phone").code == 2
    assert npas("bench", "--device", "host,adb:A", "--device", "adb:B").code == 0
    assert bench.config.bench.devices == ("host", "adb:A", "adb:B") and bench.config.probe.device == "host"


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        (["bench", "--rns", "3"], "No such option: --rns", "npas bench --help"),
        (["bnch"], "No such command 'bnch'. Did you mean 'bench'?", "npas --help"),
        (["bench", "extra"], "extra", "npas bench --help"),
        (["bench", "--runs"], "--runs", "--help"),
        (["bench", "--runs", "3"], "Bad value '3' for bench.runs in --runs.", "at least 10"),
        (["bench", "--fail-above", "nan"], "Bad value 'nan' for bench.fail_above in --fail-above.", "a number"),
        (["bench", "-S", "bench.rnus=3"], "Unknown key 'bench.rnus' in -S.", "Did you mean 'runs'?"),
        (["bench", "-S", "bnech.runs=3"], "Unknown section 'bnech' in -S.", "Did you mean 'bench'?"),
        (["bench", "-S", "runs=30"], "Can't read -S 'runs=30'.", "-S section.key=value"),
        (["search-scheme", "--strategy", "bayes"], "Bad value 'bayes' for search_scheme.strategy", "Known: npas"),
        (["search-scheme", "--budget-ms", "5", "--budget-ratio", "0.5"], "budget_ms is given too (5 ms)", "Give one of the two"),
    ],
)
def test_what_can_be_typed_wrong_is_refused_with_exit_2(typed: list[str], message: str, hint: str, stage: Install, npas: Run) -> None:
    bench = stage(typed[0].replace("-", "_"))
    result = npas(*typed)
    assert result.code == 2 and result.out == "" and not bench.calls
    assert result.err.startswith("Error: ") and message in result.err and hint in result.err.partition("Hint: ")[2] and "Traceback" not in result.err


def test_a_ratio_that_a_file_would_silence_is_refused(stage: Install, npas: Run, project: Path) -> None:
    """budget_ms of params.yaml wins over budget_ratio: the flag would have no effect."""
    search = stage("search_scheme")
    (project / "params.yaml").write_text("search_scheme: {budget_ms: 6.7}\n")
    assert "budget_ms is set in params.yaml (6.7 ms)" in npas("search-scheme", "--budget-ratio", "0.4").err and not search.calls
    assert npas("search-scheme", "--budget-ratio", "0.4", "--budget-ms", "null").code == 0
    assert search.config.search_scheme.budget_ms is None and search.config.search_scheme.budget_ratio == 0.4


def test_show_config_prints_each_value_with_its_source_and_runs_nothing(stage: Install, npas: Run, project: Path) -> None:
    bench = stage("bench")
    (project / "params.yaml").write_text("bench: {warmup: 21}\n")
    shown = npas("bench", "--show-config", "--json", "--runs", "30", "-S", "task.seed=7").json
    assert shown["bench.runs"] == {"value": 30, "source": "flag"}
    assert shown["bench.warmup"] == {"value": 21, "source": "params.yaml"}
    assert shown["task.seed"] == {"value": 7, "source": "-S"}
    assert shown["probe.device"] == {"value": "host", "source": "default"}
    lines = [line.split() for line in npas("bench", "--show-config", "--runs", "30").out.splitlines()]
    assert ["bench.runs", "30", "flag"] in lines and ["bench.cpus", "[]", "default"] in lines
    assert not bench.calls


def test_a_hand_run_prints_the_line_that_would_record_it(stage: Install, npas: Run, project: Path) -> None:
    stage("search_scheme")
    result = npas("search-scheme", "--budget-ms", "6.7", "--rates", "2,3")
    assert "To record this run: dvc exp run -S search_scheme.budget_ms=6.7 -S 'search_scheme.rates=[2.0, 3.0]'" in result.err
    assert "dvc exp run" not in npas("search-scheme").err


def test_save_params_changes_its_line_and_keeps_the_rest(stage: Install, npas: Run, project: Path) -> None:
    bench = stage("bench")
    text = options.params_yaml()
    (project / "params.yaml").write_text(text)
    result = npas("bench", "--runs", "250", "--cpus", "0,1", "--save-params", "-S", "task.model=mobilenet_v2")
    assert result.code == 0 and bench.calls[0][1] == {} and "dvc exp run" not in result.err
    new = (project / "params.yaml").read_text()
    changed = [(old, line) for old, line in zip(text.splitlines(), new.splitlines(), strict=True) if old != line]
    assert [line.split("#")[0].strip() for _, line in changed] == ["model: mobilenet_v2", "runs: 250", "cpus: [0, 1]"]
    assert all(old.split("#")[1] == line.split("#")[1] for old, line in changed)
    assert bench.config == load(project / "params.yaml").config


@pytest.mark.parametrize(
    "text",
    [
        "bench:\n  runs: 30 # why\n  warmup: 5\n",
        "bench:   # section\n    runs:   30\n\n# next\ntask:\n  seed: 1\n",
        "task:\n  seed: 1\n",
        "task: {seed: 1}\n",
        "bench:\n  session: 3\nreport:\n  title: 'runs: # 3'\n",
        "",
        "# only a comment\n",
    ],
)
def test_save_params_in_files_of_other_layouts(text: str, stage: Install, npas: Run, project: Path) -> None:
    stage("bench")
    (project / "params.yaml").write_text(text)
    assert npas("bench", "--runs", "77", "--save-params").code == 0
    before, after = yaml.safe_load(text) or {}, yaml.safe_load((project / "params.yaml").read_text())
    assert after == before | {"bench": before.get("bench", {}) | {"runs": 77}}
    assert [line for line in text.splitlines() if "#" in line and "runs:" not in line.split("#")[0]] == [
        line for line in (project / "params.yaml").read_text().splitlines() if "#" in line and "runs:" not in line.split("#")[0]
    ]


@pytest.mark.parametrize("items", ["  - 0\n  - 1\n", "    - 0\n    - 1\n"])
def test_save_params_replaces_a_list_as_dvc_writes_it(items: str, stage: Install, npas: Run, project: Path) -> None:
    stage("bench")
    (project / "params.yaml").write_text(f"bench:\n  cpus:    # cores\n{items}  runs: 30 # timed\n")
    assert npas("bench", "--cpus", "2", "--save-params").code == 0
    assert (project / "params.yaml").read_text() == "bench:\n  cpus: [2]  # cores\n  runs: 30 # timed\n"


@pytest.mark.parametrize("text", ["bench: {runs: 30}\n", "bench:\n  cpus: [0,\n    1]\n  runs: 30\n"])
def test_save_params_leaves_a_file_alone_that_it_can_not_edit(text: str, stage: Install, npas: Run, project: Path) -> None:
    bench = stage("bench")
    (project / "params.yaml").write_text(text)
    result = npas("bench", "--cpus", "2", "--save-params")
    assert result.code == 2 and "Edit it by hand: bench.cpus: [2]" in result.err and not bench.calls
    assert (project / "params.yaml").read_text() == text


def test_save_params_makes_the_file_where_there_is_none(stage: Install, npas: Run, project: Path) -> None:
    stage("bench")
    assert npas("bench", "--runs", "77", "--save-params").code == 0
    assert load(project / "params.yaml").config.bench.runs == 77 and "# timed runs" in (project / "params.yaml").read_text()
