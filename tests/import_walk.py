"""Which files of the repository a file imports, also inside functions, read with ast (nothing is executed)."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("stages", "npas_cli")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    """stages/graph/layer.py -> "stages/graph/layer.py", relative to the repository."""
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    """stages/graph/layer.py -> "stages.graph.layer"; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported_modules(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Dotted names as written: ``from stages.graph import trace`` gives both stages.graph and stages.graph.trace."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _top_level(tree) if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module(path).split(".")[: -node.level + (path.name == "__init__.py") or None]) if node.level else ""
            target = ".".join(part for part in (base, node.module) if part)
            found |= {target} | {f"{target}.{alias.name}" for alias in node.names}
    return frozenset(found)


def _top_level(tree: ast.AST) -> list[ast.AST]:
    """Nodes that run on import: everything outside functions."""
    inside = [child for child in ast.iter_child_nodes(tree) if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    return inside + [node for child in inside for node in _top_level(child)]


def imports(path: Path) -> set[Path]:
    """The repository's files that ``path`` imports, with the ``__init__`` of every package on the way."""
    found: set[Path] = set()
    for dotted in imported_modules(path):
        parts = dotted.split(".")
        if parts[0] in PACKAGES:
            found |= {file for end in range(1, len(parts) + 1) if (file := _file(parts[:end]))}
    return found - {path}


def _file(parts: list[str]) -> Path | None:
    base = ROOT.joinpath(*parts)
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)


def reached(start: Path) -> set[Path]:
    """``start`` and all it imports, directly or not."""
    seen, waiting = {start}, [start]
    while waiting:
        new = imports(waiting.pop()) - seen
        seen |= new
        waiting += new
    return seen
