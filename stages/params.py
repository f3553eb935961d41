"""The strict loader of params.yaml, -S and flags: every value is checked against its field in config.py. Imports errors and config, never torch."""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.config import SECTIONS, Config, fields
from stages.errors import UsageError


@functools.cache
def _types(section: str) -> dict[str, Any]:
    return typing.get_type_hints(SECTIONS[section])


@dataclass(frozen=True)
class Kind:
    """A field's type taken apart: ``tuple[float, ...]`` is Kind(float, many=True), ``float | None`` is Kind(float, optional=True)."""

    scalar: type
    optional: bool = False
    many: bool = False


def field_kind(section: str, key: str) -> Kind:
    """The Kind of a field."""
    hint = _types(section)[key]
    if isinstance(hint, types.UnionType):
        return Kind(next(k for k in typing.get_args(hint) if k is not type(None)), optional=True)
    return Kind(typing.get_args(hint)[0], many=True) if typing.get_origin(hint) is tuple else Kind(hint)


EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _parse(kind: type, value: Any) -> Any:
    """``value`` as ``kind``, else ValueError. Text is read as a number here, for YAML reads 1e-3 as text, 010 as 8 and 1:30 as 90."""
    if isinstance(value, str) and kind is not str:
        value = {"true": True, "false": False}.get(value.strip().lower(), value) if kind is bool else _number(value)
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or kind(value) != value:
        raise ValueError
    return kind(value)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _closest(name: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"Did you mean '{close[0]}'? Known: {', '.join(known)}." if close else f"Known: {', '.join(known)}."


def convert(section: str, key: str, value: Any, where: str) -> Any:
    """``value`` (from YAML or from a flag's text) as the field's type, checked; UsageError tells key, value, place and what is allowed."""
    meta = fields(section)[key].metadata
    kind = field_kind(section, key)

    def fail(expected: str) -> typing.NoReturn:
        raise UsageError(f"Bad value {value!r} for {section}.{key} in {where}.", f"Expected {expected}: {meta['help']}.")

    def scalar(item: Any) -> Any:
        if isinstance(item, bool) and "no" in meta["choices"]:
            item = "yes" if item else "no"  # YAML 1.1 reads yes and no as true and false
        if meta["count_or"]:
            if re.fullmatch(f"0*[1-9][0-9]*|{meta['count_or']}", str(item)):
                return str(item).lstrip("0")
            fail(f"a whole number from 1 on, or {meta['count_or']}")
        try:
            item = _parse(kind.scalar, item)
        except (ValueError, OverflowError):
            fail(EXPECTED[kind.scalar])
        if meta["choices"] and item not in meta["choices"]:
            raise UsageError(f"Bad value {item!r} for {section}.{key} in {where}.", _closest(str(item), meta["choices"]))
        if meta["low"] is not None and item < meta["low"]:
            fail(f"at least {meta['low']}")
        if meta["high"] is not None and item > meta["high"]:
            fail(f"at most {meta['high']}")
        return item

    if kind.optional and (value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none", ""))):
        return None
    if value is None:
        fail("a value, not null")
    if not kind.many:
        return scalar(value)
    if isinstance(value, str):
        value = [item.strip(" '\"") for item in value.strip().removeprefix("[").removesuffix("]").split(",") if item.strip()]
    if not isinstance(value, list | tuple):
        fail("a list")
    items = tuple(scalar(item) for item in value)
    if len(set(items)) < len(items):
        fail("different values")
    if not items and fields(section)[key].default:
        fail("at least one value")
    return items


@dataclass(frozen=True)
class Loaded:
    """A Config, where each value came from (``sources["bench.runs"]``: default, params.yaml, -S or flag), and the Config without -S and flags."""

    config: Config
    sources: dict[str, str]
    recorded: Config

    def value(self, name: str) -> Any:
        """The value of ``"section.key"``."""
        return _value(self.config, name)

    @property
    def overrides(self) -> dict[str, Any]:
        """Values that -S or a flag changed for this run, e.g. ``{"bench.runs": 30}``; one that repeats params.yaml changes nothing."""
        return {name: self.value(name) for name, source in self.sources.items() if source in ("-S", "flag") and self.value(name) != _value(self.recorded, name)}


def _value(config: Config, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def load(path: Path | None = None, sets: typing.Iterable[str] = (), flags: typing.Mapping[str, Any] | None = None) -> Loaded:
    """The configuration: dataclass defaults < ``path`` (params.yaml, may be absent when None) < ``sets`` ("section.key=value") < ``flags`` ({"section.key": value}).

    Raises UsageError for an unknown section or key (with the closest known one), a bad value, or a file that isn't YAML.
    """
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    sources = {f"{section}.{key}": "default" for section in SECTIONS for key in fields(section)}

    def put(section: str, key: str, value: Any, where: str, source: str) -> None:
        if section not in SECTIONS:
            raise UsageError(f"Unknown section '{section}' in {where}.", _closest(section, SECTIONS))
        if key not in fields(section):
            raise UsageError(f"Unknown key '{section}.{key}' in {where}.", _closest(key, fields(section)))
        values[section][key] = convert(section, key, value, where)
        sources[f"{section}.{key}"] = source

    def built() -> Config:
        return Config(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})

    for section, key, value in read_params(path) if path else ():
        put(section, key, value, str(path), "params.yaml")
    recorded = built()
    for text in sets:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise UsageError(f"Can't read -S {text!r}.", "Write -S section.key=value, e.g. -S search_scheme.budget_ms=6.7.")
        put(section, key, value, "-S", "-S")
    for name, value in (flags or {}).items():
        section, _, key = name.partition(".")
        put(section, key, value, f"--{key.replace('_', '-')}", "flag")
    return Loaded(built(), sources, recorded)


def read_params(path: Path) -> list[tuple[str, str, Any]]:
    """(section, key, value) of a YAML file of sections, not yet checked against the known ones. UsageError when it can't be read as such."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"No configuration file {path}.", "Run npas in a project folder, or name the file with --params.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Can't read {path}: {error}.", "Check the file and its permissions.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.", "Mend the file; params.yaml of the repository is an example.") from None
    if not isinstance(content, dict | None):
        raise UsageError(f"{path} does not hold sections.", "Write 'section:' lines with 'key: value' below each.")
    for section, keys in (content or {}).items():
        if not isinstance(keys, dict | None):
            raise UsageError(
                f"Section '{section}' of {path} does not hold 'key: value' lines.", f"Write '{section}:' and below it indented 'key: value' lines."
            )
        if section not in SECTIONS:
            raise UsageError(f"Unknown section '{section}' in {path}.", _closest(str(section), SECTIONS))
    return [(section, str(key), value) for section, keys in (content or {}).items() for key, value in (keys or {}).items()]
