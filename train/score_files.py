"""What judges say of videos, from files: the scores of a critic, and single metrics as a CSV `video,metric,value`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import some
from fantasy_core.pair_rules import DIMENSIONS
from train import scored
from train.csv_table import bad_table, read_table
from train.tables import part_files

METRICS = {"SD": "mn", "Sync-C": "ls", "IQA": "vq", "AES": "vq"}  # and the dimension that it stands for in Table 2
NAMES = {name.lower().replace("-", "_"): name for name in METRICS}  # as train.evaluate writes them
Values = Mapping[str, float]  # video -> number
Scores = Mapping[str, Values]  # dimension -> video -> z


@dataclass(frozen=True)
class Source:
    """Scores: a file, or a folder of train.score; of which critic and views (hashes or how they begin), where they are
    of several; and what the flags that choose them begin with."""

    path: Path
    critic: str | None = None
    views: str | None = None
    flags: str = ""


def read_scores(source: Source, files: Mapping[str, str] | None = None) -> Scores:
    """z by dimension and video. files: video -> sha256, where it is known; scores of other files are left out. Raises
    UserError for a z that is no finite number, for rows of several critics or views, and for a video that has two
    scores."""
    import pyarrow as pa

    kinds = pa.schema([("video", pa.string()), ("sha256", pa.string())])
    rows = [{"video": video, "sha256": told} for video, told in (files or {}).items()]
    known, chosen = pa.Table.from_pylist(rows, kinds), {"critic": source.critic, "views": source.views}
    table = scored.read_scores(part_files([source.path]), chosen, {}, known, source.flags).to_pydict()
    return {
        d: {video: z for video, z in zip(table["video"], table[f"z_{d}"], strict=True) if z is not None}
        for d in DIMENSIONS
    }


def read_metrics(path: Path, known: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Values by metric and video from a CSV `video,metric,value`, as train.evaluate writes it (metrics.csv) or by hand;
    metrics that are not among METRICS are left out. known: annotated video -> sha256. Where both tell the hash, rows
    are of the videos of that content, whatever their name; else `video` is the id. Raises UserError for a file without
    a video that is `known`, for what is no finite number, for two values of one video, and for a file without any of
    METRICS."""
    found: dict[str, dict[str, float]] = {}
    contents: dict[str, list[str]] = {}
    for video, content in known.items():
        contents.setdefault(content or f"unknown {video}", []).append(video)
    problems, others = [], set()
    for number, row in read_table(path, ("video", "metric", "value")):
        name = NAMES.get(row["metric"].lower().replace("-", "_"))
        if name is None:
            others.add(row["metric"])
            continue
        value, values = _number(row["value"]), found.setdefault(name, {})
        videos = _videos_of(row, known, contents)
        wrong = [f"value {row['value']!r}"] if value is None else []
        wrong += [f"{video} has {name} twice" for video in videos if values.get(video, value) != value]
        problems += [f"line {number}: {one}" for one in wrong]
        values |= dict.fromkeys(videos, value or 0.0)
    if not found:
        problems.append(f"metrics {some(sorted(others)) or 'none'}")
    elif known.keys().isdisjoint(videos := {video for values in found.values() for video in values}):
        problems.append(f"no video of it is annotated: {some(sorted(videos))}")
    if problems:
        raise bad_table(path, problems, f"annotated videos, {', '.join(METRICS)}, and one number of each")
    return found


def _videos_of(row: Mapping[str, str], known: Mapping[str, str], contents: Mapping[str, list[str]]) -> list[str]:
    """The annotated videos that a row is of, or a name for one that is not annotated: two methods' files may share
    theirs."""
    video, content = row["video"], row.get("sha256", "")
    if content in contents:
        return contents[content]
    if video in known and not (content and known[video]):
        return [video]
    return [f"{video} of {row['method']}" if row.get("method") else video]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
