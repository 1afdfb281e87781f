"""A run's settings as a TOML file that can be given back as --config."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fantasy_core.media.files import replacing


def write_settings(path: Path, settings: Any, about: str) -> None:
    """A dataclass as TOML, a key a field, under a line of comment; whole or not at all."""
    rows = [f"{field.name} = {toml_value(getattr(settings, field.name))}" for field in dataclasses.fields(settings)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text("\n".join([f"# {about}", *rows, ""]), "utf-8")


def toml_value(value: Any) -> str:
    """A text, path, number, bool, None or several texts as TOML has them. TOML knows no nothing: None is "none", which
    `run.read_settings` understands."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    text = "none" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's but for this one
