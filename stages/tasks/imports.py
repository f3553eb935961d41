"""``package.module:name`` in the configuration: find it, with an error for each way that can fail. Imports errors only."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from stages.errors import UsageError


def is_reference(spec: str) -> bool:
    """Whether ``spec`` looks like ``package.module:name`` (and not like a Windows drive or a plain name)."""
    module, colon, name = spec.partition(":")
    return bool(colon) and all(part.isidentifier() for part in module.split(".")) and name.isidentifier()


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or all of them when they are few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(known)}." if 0 < len(known) <= 12 else "Check the spelling."


def resolve(spec: str, key: str) -> Any:
    """The callable that ``spec`` ("package.module:name") refers to; modules of the current directory are found too. ``key`` names the setting in errors, e.g. "task.model"."""
    module_name, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UsageError(f"No module '{module_name}' for {key}.", "Run npas in the folder that holds it, or install it into this environment.") from None
        raise UsageError(f"Module '{module_name}' of {key} can't be imported: {error}.", f"Install '{error.name}' into this environment.") from error
    except Exception as error:  # the user's module may raise anything
        raise UsageError(f"Module '{module_name}' of {key} can't be imported: {describe(error)}.", "Mend the module; -vv shows the traceback.") from error
    if not hasattr(module, name):
        raise UsageError(f"Module '{module_name}' of {key} has no '{name}'.", suggestion(name, [n for n in vars(module) if not n.startswith("_")]))
    found = getattr(module, name)
    if not callable(found):
        raise UsageError(f"'{spec}' of {key} is a {type(found).__name__}, not something to call.", "Name a function or a class.")
    return found


def describe(error: BaseException) -> str:
    """``ValueError: text`` on one line, for a message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
