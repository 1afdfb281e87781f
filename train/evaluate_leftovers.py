"""What an earlier command wrote into the same folder and this one does not: it would stand beside other numbers.

The folder's evaluation.json says what is there of ours; nothing else is touched, and the cache stays: the earlier
command gives its files again in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

TABLES = ("table.md", "metrics.csv")  # of videos
STUDY = "study.md"


def remove_leftovers(out: Path, videos: bool, study: bool, plots: Collection[str]) -> list[Path]:
    """Removes from `out` the files of an earlier evaluation that one of videos, of a study, or of both does not write
    anew; `plots` are the columns that it draws. Returns them."""
    earlier = _earlier(out)
    names = [
        *(TABLES if "cells" in earlier and not videos else ()),
        *([STUDY] if "study" in earlier and not study else ()),
    ]
    drawn = set(earlier.get("columns", ())) - set(plots)
    old = [path for path in map(out.joinpath, names) if path.is_file()]
    old += [path for path in sorted((out / "plots").glob("*.png")) if path.stem in drawn]
    for path in old:
        path.unlink()
    return old


def _earlier(out: Path) -> dict[str, Any]:
    """What evaluation.json of the earlier command says; nothing where there is none, or it is damaged or another's."""
    try:
        told = json.loads((out / "evaluation.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) and isinstance(told.get("columns", {}), dict) else {}
