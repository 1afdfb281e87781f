"""The page of an evaluation: one HTML file that needs no server and no network.

Tables, plots and players are drawn by page.js from the JSON in the file. Videos are referenced beside the page, or, the
small ones, put into it. Whatever comes from names and messages is text to the page: the JSON cannot end its element,
and only the one script whose hash the page states may run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fantasy_core.media.files import replacing
from train.evaluate_table import ARROWS, LABELS, caption
from train.report_page.page_tables import page_tables

FOLDER = Path(__file__).parent
SMALL, ALL_SMALL = 4_000_000, 80_000_000  # bytes of a video that is put into the page, and of all of them
TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska"}


def write_page(
    path: Path,
    result: Mapping[str, Any] | None,
    study: Mapping[str, Any] | None,
    *,
    gate: Mapping[str, Any] | None = None,
    embed: bool = False,
) -> None:
    """report.html of what evaluation.json holds (videos or a user study, or both), with a gate's picture if there is
    one (`about`, `png`). embed: small videos go into the file, so that it can be sent alone."""
    data = page_data(result, study, path.parent, embed)
    if gate:
        data["gate"] = {"about": gate["about"], "image": data_uri(gate["png"], "image/png")}
    with replacing(path) as beside:
        beside.write_text(page_of(data), "utf-8")


def page_of(data: Mapping[str, Any]) -> str:
    """The template, filled."""
    css, js = ((FOLDER / name).read_text("utf-8").strip() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    parts = {"title": html.escape(data["title"]), "css": css, "js": js, "hash": f"sha256-{digest}"}
    page = (FOLDER / "template.html").read_text("utf-8")
    for name, text in (parts | {"data": embedded(data)}).items():
        page = page.replace("{{" + name + "}}", text, 1)
    return page


def embedded(data: Any) -> str:
    """JSON that cannot leave its script element, whatever its texts are."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page_data(
    result: Mapping[str, Any] | None, study: Mapping[str, Any] | None, folder: Path, embed: bool
) -> dict[str, Any]:
    """What page.js draws."""
    warnings = [*(result["warnings"] if result else ()), *(study["warnings"] if study else ())]
    told = {"methods": [], "inputs": [], "plots": [], "media": {}, "caption": "", "gate": None}
    if result:
        names = list(result["cells"])
        told |= {"methods": names, "inputs": result["inputs"], "plots": plots_of(result), "caption": caption(result)}
        told["media"] = media_of(result, folder, embed)
    else:
        told["caption"] = "A user study, without videos."
    title = ", ".join(told["methods"]) if result else "User study"
    return told | {
        "title": f"Evaluation: {title}",
        "warnings": warnings,
        "tables": page_tables(result, study),
        "settings": settings_of(result),
    }


def plots_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of single videos that have numbers: those with a better side first, values by method and input."""
    found = []
    for column, about in result["columns"].items():
        values = {
            method: {i: v["values"][column] for i, v in of.items() if v["values"].get(column) is not None}
            for method, of in result["videos"].items()
        }
        if not about["of_sets"] and any(values.values()):
            cells = {method: row[column] for method, row in result["cells"].items()}
            name = LABELS.get(column, column) + ARROWS[about["better"]]
            found.append({"label": name, "better": about["better"], "values": values, "cells": cells})
    return sorted(found, key=lambda one: not one["better"])


def media_of(result: Mapping[str, Any], folder: Path, embed: bool) -> dict[str, dict[str, Any]]:
    """Where the page finds each video: by method and input."""
    left, media = ALL_SMALL if embed else 0, {}
    for method, videos in result["videos"].items():
        media[method] = {}
        for stem, video in videos.items():
            path, facts = Path(video["path"]), video["facts"]
            inside = path.stat().st_size <= min(SMALL, left)
            left -= path.stat().st_size if inside else 0
            url = (content_of(path) if inside else address(path, folder)) if facts else None
            media[method][stem] = {"url": url, "name": path.name, "notes": "; ".join(facts["notes"]) if facts else ""}
    return media


def content_of(path: Path) -> str:
    return data_uri(path.read_bytes(), TYPES.get(path.suffix.lower(), "video/mp4"))


def address(path: Path, folder: Path) -> str:
    """A path relative to the page; a file's whole address where there is none (another drive)."""
    try:
        return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())
    except ValueError:
        return path.resolve().as_uri()


def settings_of(result: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(title, text) of what is folded away at the end."""
    if result is None:
        return []
    told = [("Command", result["settings"])]
    told += [(f"Metric {name}", about["settings"]) for name, about in result["metrics"].items()]
    told.append(("Libraries", result["versions"]))
    return [(title, json.dumps(text, indent=2, ensure_ascii=False, default=str)) for title, text in told]
