"""Ratings of a user study, 0 to 10 in each dimension, from Label Studio or a CSV `rater,clip,method,mn,ls,vq`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from fantasy_core.pair_rules import DIMENSIONS
from train.csv_table import read_table
from train.label_studio import Answer, read_export

LEAST, MOST = 0, 10


@dataclass(frozen=True)
class Studied:
    """A line of study_videos.jsonl: raters see `video`, which is `source`'s answer to `input`."""

    video: str
    input: str
    source: str
    sha256: str = ""


@dataclass(frozen=True)
class Rating:
    """What one rater gives one method on one clip (the input: portrait and voice)."""

    rater: str
    clip: str
    method: str
    mn: float
    ls: float
    vq: float


def ratings_of(rows: Iterable[Mapping[str, Any]]) -> list[Rating]:
    """Ratings from rows with rater, clip, method, mn, ls, vq. Raises UserError for a number that is none or outside
    0..10, for an empty name, and for a rater who rates the same video twice."""
    found, problems = [], []
    for number, row in enumerate(rows, 1):
        names = {name: str(row.get(name) or "") for name in ("rater", "clip", "method")}
        scores = {name: _number(row.get(name)) for name in DIMENSIONS}
        where = " ".join(names.values()).strip() or f"row {number}"
        problems += [f"{where}: no {name}" for name, text in names.items() if not text]
        problems += [f"{where}: {name} is {row.get(name)!r}" for name, score in scores.items() if score is None]
        if all(score is not None for score in scores.values()):
            found.append(Rating(**names, **scores))
    times = Counter((rating.rater, rating.clip, rating.method) for rating in found)
    problems += [f"{' '.join(who)}: rated {n} times" for who, n in times.items() if n > 1]
    if problems:
        raise UserError(
            "these ratings cannot be used",
            got=some(problems),
            expected=f"each rater once for each clip and method, with numbers from {LEAST} to {MOST} in mn, ls and vq",
            do="correct them; an average over what is left would favour somebody",
        )
    return found


def _number(given: Any) -> float | None:
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        return None
    return number if LEAST <= number <= MOST else None


def ratings_of_answers(answers: Iterable[Answer], videos: Mapping[str, Studied]) -> list[Rating]:
    """Ratings from the answers in an export; `videos` says of each video whose it is, since raters are not told.
    Raises UserError as `ratings_of`, and for videos that are not among these or were other files."""
    rows, strangers = {}, set()
    for answer in answers:
        if answer.video not in videos:
            strangers.add(answer.video)
            continue
        shown = videos[answer.video]
        if answer.sha256 and shown.sha256 and answer.sha256 != shown.sha256:
            strangers.add(f"{answer.video} (another file)")
            continue
        clip, method = shown.input, shown.source
        row = rows.setdefault(answer.annotation, {"rater": answer.by, "clip": clip, "method": method})
        row[answer.name] = answer.value
    if strangers:
        raise UserError(
            "these ratings are of other videos",
            got=some(strangers),
            expected="videos of videos.jsonl",
            do="give the study_videos.jsonl that train.annotate wrote beside the tasks",
        )
    return ratings_of(rows.values())


def read_ratings(path: Path, videos: Mapping[str, Studied]) -> list[Rating]:
    """A CSV (by its name), or an export with `videos` as in `ratings_of_answers`. Raises UserError."""
    if path.suffix.lower() == ".csv":
        return ratings_of(row for _, row in read_table(path, ("rater", "clip", "method", *DIMENSIONS)))
    return ratings_of_answers(read_export(path).answers, videos)
