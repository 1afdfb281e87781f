"""The project's own files as the house tests see them: which are tracked, their syntax trees, what they import."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@cache
def tracked() -> tuple[str, ...]:
    """Files that git tracks or would add; without git (an unpacked archive) every file outside hidden folders."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
        names = [name for name in names if name[0] != "." and "__pycache__" not in name and ".egg-info" not in name]
    else:
        names = listing.stdout.splitlines()
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def sources(*folders: str) -> list[str]:
    """Tracked Python files below the folders; with none given, all of them."""
    places = tuple(f"{folder}/" for folder in folders) or ("",)
    return [name for name in tracked() if name.endswith(".py") and name.startswith(places)]


@cache
def tree(name: str) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def imports(nodes) -> list[tuple[int, str]]:
    """(level, module) of every import among the nodes: level 0 is absolute, 1 the own package, 2 the one above."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.level, node.module))
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, alias.name) for alias in node.names]
    return found


def at_import(node: ast.AST):
    """The nodes that run when the module is imported: not the bodies of functions, not `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def targets(name: str, nodes) -> set[str]:
    """Dotted names of the project's own modules that the nodes import, relative ones resolved from the file's place."""
    package = list(Path(name).parent.parts)
    resolved = set()
    for level, module in imports(nodes):
        parts = package[: len(package) - level + 1] if level else []
        resolved.add(".".join([*parts, module]))
    return resolved


def enters(target: str, package: str) -> bool:
    """Whether a dotted name is the package or lies inside it."""
    return target == package or target.startswith(package + ".")
