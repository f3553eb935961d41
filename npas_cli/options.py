"""Config dataclass -> flags of a command, and the text of params.yaml (`python -m npas_cli.options` prints it). Imports typer and config, no torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.markup import escape

from npas_cli.commands import Command
from stages.artifacts import write_atomic
from stages.config import SECTIONS, fields
from stages.errors import UsageError
from stages.params import Kind, field_kind

WORDS = {bool: "", int: "INT", float: "FLOAT", str: "TEXT"}


def common(measures: bool) -> dict[str, tuple[type, Any]]:
    """The flags that every stage command has beside those of its section: parameter -> (type, typer.Option)."""
    flags: dict[str, tuple[type, Any]] = {
        "params": (str, typer.Option(None, "--params", metavar="FILE", help="configuration file (default: params.yaml, where there is one)", rich_help_panel="Configuration")),
        "sets": (list[str], typer.Option(None, "-S", metavar="SECTION.KEY=VALUE", help="set any key of any section; repeatable", rich_help_panel="Configuration")),
        "show_config": (bool, typer.Option(False, "--show-config", help="print each value with its source, and stop", rich_help_panel="Configuration")),
        "save_params": (bool, typer.Option(False, "--save-params", help="write the values of -S and the flags into the configuration file", rich_help_panel="Configuration")),
    }
    if measures:
        device = fields("probe")["device"].metadata["help"]
        flags["device"] = (str, typer.Option(None, "--device", metavar="DEVICE", help=f"{device}; sets probe.device", rich_help_panel="Configuration"))
    return flags | OUTPUT


OUTPUT: dict[str, tuple[type, Any]] = {
    "as_json": (bool, typer.Option(False, "--json", help="print exactly one JSON object on stdout: the result, or the error", rich_help_panel="Output")),
    "quiet": (bool, typer.Option(False, "--quiet", "-q", help="no progress, only errors", rich_help_panel="Output")),
    "verbose": (int, typer.Option(0, "--verbose", "-v", count=True, help="-v: warnings, log and time taken; -vv: tracebacks too", rich_help_panel="Output")),
}


HOSTS: dict[str, tuple[type, Any]] = {
    "hosts": (list[str], typer.Option(None, "--host", metavar="HOST:PORT", help="ask a phone on the network too (repeatable); else those of probe.hosts in params.yaml"))
}


def signature(flags: Mapping[str, tuple[type, Any]]) -> inspect.Signature:
    """The signature that Typer reads flags from."""
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind) for name, (kind, option) in flags.items()])


def stage_flags(command: Command) -> dict[str, tuple[type, Any]]:
    """All flags of a stage command: one for each field of its section, then the common ones."""
    own = {key: field_flag(command.section, key) for key in fields(command.section)}
    return own | common(command.measures and not {"device", "devices"} & set(own))  # --device of bench is its own


def field_flag(section: str, key: str) -> tuple[type, Any]:
    """(type, typer.Option) of one field. Values arrive as text, for config.convert reads and checks them, as it does those of params.yaml; None means "not given"."""
    kind, name = field_kind(section, key), f"--{key.replace('_', '-')}"
    meta = fields(section)[key].metadata
    help = escape(f"{meta['help']} ({_allowed(section, key)})")
    if kind.scalar is bool:
        return bool, typer.Option(None, f"{name}/--no-{name[2:]}", help=help, show_default=False)
    metavar = "|".join(meta["choices"]) if meta["choices"] and not kind.many else WORDS[kind.scalar]
    names = [meta["flag"], name] if meta["flag"] else [name]
    return (list[str] if kind.many else str), typer.Option(None, *names, metavar=metavar + (",..." if kind.many else ""), help=help, show_default=False)


def _allowed(section: str, key: str) -> str:
    """ "default 30; at least 1" """
    field, kind = fields(section)[key], field_kind(section, key)
    default: Any = field.default
    words = [f"default {','.join(map(str, default)) or 'empty' if kind.many else yaml_text(default)}"]
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None and high is not None:
        words.append(f"{low} to {high}")
    elif low is not None:
        words.append(f"at least {low}")
    if kind.many and field.metadata["choices"]:
        words.append(f"of {', '.join(field.metadata['choices'])}")
    return "; ".join(words)


def given(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were typed, as {"section.key": value}; those not given are left out. ``--rates 2,3 --rates 5`` is ``2,3,5``."""
    flags = {f"{section}.{key}": ",".join(value) if isinstance(value, list | tuple) else value for key, value in values.items() if key in fields(section) and value not in (None, [], ())}
    if values.get("device") is not None:
        flags["probe.device"] = values["device"]
    return flags


def yaml_text(value: Any) -> str:
    """``value`` as it stands in params.yaml: ``null``, ``0.5``, ``[2.0, 2.5]``; text is quoted only where YAML would read it as something else."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n").removesuffix("\n...")


def params_yaml() -> str:
    """params.yaml with every tunable at its default, its help text beside it."""
    lines = ["# Every tunable of the pipeline. Made by `python -m npas_cli.options` from stages/config.py; edit the values as you like."]
    for section, cls in SECTIONS.items():
        lines += ["", f"# {(cls.__doc__ or '').strip()}", f"{section}:"]
        entries = [(f"  {key}: {yaml_text(field.default)}", field) for key, field in fields(section).items()]
        width = min(32, max(len(entry) for entry, _ in entries))
        lines += [f"{entry:<{width}}  # {_comment(field, field_kind(section, key))}" for (entry, field), key in zip(entries, fields(section), strict=True)]
    return "\n".join(lines) + "\n"


def _comment(field: Any, kind: Kind) -> str:
    choices = field.metadata["choices"]
    listed = all(choice in field.metadata["help"] for choice in choices) or (kind.many and set(choices) == set(field.default))
    return field.metadata["help"] + ("" if listed else f" ({', '.join(choices)})")


def save(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` ({"section.key": value}) into ``path`` and leave every other line, comments too, as it was. UsageError when the file isn't laid out like params.yaml."""
    text = path.read_text(encoding="utf-8") if path.exists() else params_yaml()
    expected = yaml.safe_load(text) or {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        text = _with_line(text, section, key, yaml_text(value))
        expected.setdefault(section, {})[key] = yaml.safe_load(yaml_text(value))
    if _loads(text) != expected:
        raise UsageError(f"Can't change {path} by itself: it isn't laid out one 'key: value' a line.", f"Edit it by hand: {', '.join(f'{name}: {yaml_text(value)}' for name, value in values.items())}.")
    write_atomic(path, lambda temporary: _write(temporary, text))


def _with_line(text: str, section: str, key: str, value: str) -> str:
    """``text`` with the line of section.key replaced (its comment stays; a list may stand an item a line, as `dvc exp run` leaves it), or added below the section's name, or with a new section at the end."""
    head = re.search(rf"^{section}:[ \t]*(#.*)?$", text, re.M)
    if head is None:
        return f"{text.rstrip()}\n\n{section}:\n  {key}: {value}\n".lstrip("\n")
    end = re.search(r"^\S(?<!#)", text[head.end() :], re.M)
    stop = head.end() + end.start() if end else len(text)
    block = text[head.end() : stop]
    line = re.search(rf"^(?P<start>[ \t]+{key}:)[ \t]*(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^#\n]*?)(?P<gap>[ \t]*)(?P<comment>#.*)?(?P<items>(\n[ \t]*-[ \t].*)*)$", block, re.M)
    if line is None:
        return text[: head.end()] + f"\n  {key}: {value}" + text[head.end() :]
    written = f"{line['start']} {value}"
    if line["comment"]:
        written = f"{written:<{max(line.start('comment') - line.start() - 2, 0)}}  {line['comment']}"
    return text[: head.end()] + block[: line.start()] + written + block[line.end() :] + text[stop:]


def _loads(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    print(params_yaml(), end="")
