"""The strict loader: precedence, types, bounds, and errors that say what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.config import SECTIONS, Config, fields
from stages.errors import UsageError
from stages.params import convert, field_kind, load


def refused(section: str, key: str, value: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        convert(section, key, value, "here")
    assert caught.value.exit_code == 2
    assert f"{section}.{key} in here" in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("pretrain.lr", "1e-3", 0.001),  # YAML 1.1 hands this over as text
        ("pretrain.lr", 1, 1.0),
        ("pretrain.epochs", "010", 10),  # not octal
        ("pretrain.epochs", 3.0, 3),
        ("pretrain.epochs", "1e1", 10),
        ("search_scheme.budget_ms", "null", None),
        ("search_scheme.budget_ms", None, None),
        ("search_scheme.budget_ms", "6.7", 6.7),
        ("search_scheme.rates", "2,3,5", (2.0, 3.0, 5.0)),
        ("search_scheme.rates", "[2, 3]", (2.0, 3.0)),
        ("search_scheme.rates", [2, 3], (2.0, 3.0)),
        ("search_scheme.schemes", "none, 'filter'", ("none", "filter")),
        ("search_pruner.distill", False, "no"),  # YAML 1.1 reads no as false
        ("bench.cpus", "", ()),
        ("bench.cpus", [], ()),
        ("task.model", "123", "123"),
        ("search_pruner.workers", 2, "2"),
        ("search_pruner.workers", "ray", "ray"),
    ],
)
def test_values_take_the_type_of_their_field(name: str, given: object, value: object) -> None:
    section, key = name.split(".")
    result = convert(section, key, given, "here")
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("pretrain.lr", "nan", "a number"),
        ("pretrain.lr", float("nan"), "a number"),
        ("pretrain.lr", "inf", "a number"),
        ("pretrain.lr", "1e400", "a number"),
        ("pretrain.lr", "fast", "a number"),
        ("pretrain.lr", True, "a number"),
        ("pretrain.lr", "{", "a number"),
        ("pretrain.lr", [1], "a number"),
        ("pretrain.lr", None, "a value, not null"),
        ("pretrain.lr", -1, "at least 0"),
        ("pretrain.epochs", 1.5, "a whole number"),
        ("pretrain.epochs", "12:30", "a whole number"),
        ("pretrain.epochs", "", "a whole number"),
        ("pretrain.label_smoothing", 1.5, "at most 1"),
        ("task.model", 123, "text"),
        ("search_pruner.workers", 0, "a whole number from 1 on, or ray"),
        ("search_pruner.workers", True, "or ray"),
        ("search_pruner.workers", "dask", "or ray"),
        ("search_scheme.rates", [2, 0.5], "at least 1"),
        ("search_scheme.rates", "2,,x", "a number"),
        ("search_scheme.rates", "2,2.0", "different values"),
        ("search_scheme.rates", [], "at least one value"),
        ("search_scheme.rates", {"a": 1}, "a list"),
        ("search_scheme.strategy", "npass", "Did you mean 'npas'?"),
        ("search_scheme.schemes", "none,block_punched", "Did you mean 'block-punched'?"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(name: str, given: object, hint: str) -> None:
    assert hint in refused(*name.split("."), given).hint


def test_precedence_is_default_file_set_flag_and_each_source_is_known(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("bench:\n  runs: 20\n  warmup: 21\n  session: 22\n")
    loaded = load(params, ["bench.warmup=31", "bench.session=32"], {"bench.session": "43"})
    assert (loaded.config.bench.runs, loaded.config.bench.warmup, loaded.config.bench.session) == (20, 31, 43)
    assert [loaded.sources[f"bench.{key}"] for key in ("runs", "warmup", "session", "cpus")] == ["params.yaml", "-S", "flag", "default"]
    assert loaded.overrides == {"bench.warmup": 31, "bench.session": 43}
    assert loaded.recorded.bench.session == 22


def test_a_flag_that_repeats_the_file_overrides_nothing(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("bench: {runs: 20}\n")
    assert load(params, ["bench.runs=20"]).overrides == {}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("bench:\n  rnus: 3\n", "Unknown key 'bench.rnus'", "Did you mean 'runs'?"),
        ("bnech:\n  runs: 30\n", "Unknown section 'bnech'", "Did you mean 'bench'?"),
        ("bench: 3\n", "Section 'bench'", "key: value"),
        ("- 1\n", "does not hold sections", "section:"),
        ("bench: {runs: [}\n", "is not valid YAML", "Mend"),
        ("\tbench:\n", "is not valid YAML", "Mend"),
        ("bench:\n  runs: 3\n", "Bad value 3 for bench.runs", "at least 10"),
        ("bench:\n  fail_above: .nan\n", "Bad value nan for bench.fail_above", "a number"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str, hint: str) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(params)
    assert message in caught.value.message and str(params) in caught.value.message and hint in caught.value.hint


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"task: {model: \xe9}\n")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(UsageError, match=str(path)):
            load(path)


@pytest.mark.parametrize("text", ["bench.runs", "runs=3", "=", "bench.=3", ".runs=3", "bench.runs.x=3"])
def test_a_malformed_set_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        load(None, [text])


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("# nothing\nbench:\n")
    assert load(tmp_path / "params.yaml").config == Config()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_tunable_has_a_help_text_and_a_default_that_passes_its_own_check(section: str) -> None:
    for key, field in fields(section).items():
        assert field.metadata["help"]
        assert convert(section, key, field.default, "default") == field.default
        assert field_kind(section, key).scalar in (bool, int, float, str)
