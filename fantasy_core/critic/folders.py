"""Which folders of models hold a critic: bases of Qwen2.5-Omni and adapters, by the names people chose for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .about import ABOUT

DEEPEST = 3  # NAME, OWNER/NAME, or a download cache's NAME/snapshots/HASH
KINDS = ("qwen2_5_omni", "qwen2_5_omni_thinker")  # a whole model, or its Thinker alone


def omni_folders(roots: Iterable[Path]) -> dict[str, Path]:
    """{name below its root, with /: folder} of those with a config.json of Qwen2.5-Omni, in order of their names. The
    first root that has a name keeps it. Only that file is read."""
    return _named(roots, is_omni)


def adapter_folders(roots: Iterable[Path]) -> dict[str, Path]:
    """Folders that train.critic made: with a critic.json, which a base that an adapter was merged into has too."""
    return _named(roots, lambda folder: (folder / ABOUT).is_file() and not is_omni(folder))


def is_omni(folder: Path) -> bool:
    try:
        told = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("model_type") in KINDS


def stamp(folder: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, time of the last change) of every file in a folder: what tells that one was replaced."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _named(roots: Iterable[Path], wanted: Callable[[Path], bool]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in roots:
        for folder in _below(root, wanted, DEEPEST):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _below(root: Path, wanted: Callable[[Path], bool], depth: int) -> Iterator[Path]:
    """The wanted folders, not those inside them. Links are followed, but never deeper than `depth`."""
    try:
        inside = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:  # not there, or not ours to read
        return
    for folder in inside:
        if wanted(folder):
            yield folder
        elif depth > 1:
            yield from _below(folder, wanted, depth - 1)
