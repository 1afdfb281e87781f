"""Scores that were measured elsewhere, for models too large to run here: a file of video, metric, value, and
perhaps method."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import UserError, some
from ..manifest import sha256
from ..media import check_file
from .contract import Measured, Video
from .quality import score5

SCALES = {"1..5": (1.0, 5.0), "0..1": (0.0, 1.0)}


class ScoreFile:
    """Columns from a .json (a list), .jsonl or .csv whose rows have video, metric and value.

    A row's video may be a path, or its last parts, as `base/00.mp4` or `base/00`: it belongs to files that end in them,
    and of all `among` which scores are asked for to one alone, for methods have files of the same names. A row's
    `method`, if there is one, counts as the name of the folder. scale: what the
    values are, `1..5` or `0..1`, which becomes 1 + 4 times the value; a value outside is refused, so that one scale
    never passes for the other. Raises UserError for a file that cannot be understood.
    """

    name = "scores"
    verified = False

    def __init__(self, path: str | Path, *, columns: Sequence[str] = ("iqa", "aes"), scale: str = "1..5"):
        if scale not in SCALES:
            do = "1..5 is the paper's, 0..1 the q_align package's"
            raise UserError("unknown scale of scores", got=repr(scale), expected=" or ".join(SCALES), do=do)
        self._path, self._scale = check_file(path, "scores"), scale
        self.columns = tuple(columns)
        self.better: Mapping[str, int] = dict.fromkeys(self.columns, 1)
        self._scores = self._indexed(read_scores(self._path))
        self.among(())
        self.settings: Mapping[str, object] = {
            "file": self._path.name,
            "file_sha256": sha256(self._path),
            "scale": scale,
        }

    def _indexed(self, rows: Iterable[tuple[str, str, float]]) -> dict[str, dict[str, float]]:
        """{video: {metric: score in 1..5}}, of the wanted metrics."""
        found: dict[str, dict[str, float]] = {}
        low, high = SCALES[self._scale]
        for video, metric, value in rows:
            if metric not in self.columns:
                continue
            if not low <= value <= high:
                raise self._bad(f"{metric} {value:g} of {video}", f"values in {self._scale}", "check the scale")
            if metric in found.setdefault(video, {}):
                raise self._bad(f"{metric} of {video} twice", "every score once", "keep one of them")
            found[video][metric] = score5(value) if self._scale == "0..1" else value
        if not found:
            raise self._bad("no row of these metrics", f"rows with metric {' or '.join(self.columns)}", "check it")
        return found

    def _bad(self, got: str, expected: str, do: str) -> UserError:
        return UserError(f"scores in {self._path} cannot be used", got=got, expected=expected, do=do)

    def among(self, paths: Iterable[Path]) -> None:
        """All videos that will be asked for: a row that fits several of them is of none."""
        self._asked: dict[str, list[Path]] = {}
        for path in dict.fromkeys(map(plain, paths)):
            for name in self._fitting(path)[:1]:
                self._asked.setdefault(name, []).append(path)

    def measure(self, video: Video) -> Measured:
        """Raises UserError for a video that has no row, or whose row fits others too."""
        fits = self._fitting(video.path)
        if not fits:
            raise self._bad(f"none for {video.path}", "a row for every video", "score this video too")
        if len(fits) > 1:
            raise self._bad(f"{some(fits)} for {video.path}", "one row of a metric", "write whole paths, each once")
        (name,) = fits
        if len(rivals := self._asked.get(name, [])) > 1:
            do = "write the folder too, as base/00.mp4, or a column `method` with the folder's name"
            raise self._bad(f"{name} for {some(map(str, rivals))}", "rows that name one video", do)
        scores = self._scores[name]
        values = {column: scores.get(column) for column in self.columns}
        absent = {column: f"no row in {self._path.name}" for column, value in values.items() if value is None}
        return Measured(values, absent)

    def _fitting(self, path: Path) -> list[str]:
        """The rows' names that fit best: by the most last parts of the path."""
        whole, found = plain(path).parts, {}
        for name in self._scores:
            if fitting := _ends_in(whole, Path(name)):
                found.setdefault(fitting, []).append(name)
        return found[max(found)] if found else []


def plain(path: Path) -> Path:
    """The whole path as it was named: a link is not followed, its name may be the only one that tells the method."""
    return Path(os.path.abspath(path))


def _ends_in(whole: tuple[str, ...], name: Path) -> int:
    """By how many last parts a path's parts agree with a row's name, with or without the file's suffix; 0 if they do
    not."""
    last = plain(name).parts if name.is_absolute() else tuple(part for part in name.parts if part != "..")
    if len(last) > len(whole) or last[:-1] != whole[len(whole) - len(last) : -1]:
        return 0
    return len(last) if last[-1] in (whole[-1], Path(whole[-1]).stem) else 0


def read_scores(path: Path) -> list[tuple[str, str, float]]:
    """(video, metric, value) of every row. Raises UserError naming the first row that is not one."""
    try:
        rows = _rows(path)
    except (ValueError, csv.Error) as error:  # json and text that is not UTF-8 too
        got, do = str(error), "write a .json list, a .jsonl or a .csv with a head"
        raise UserError(f"{path} cannot be read", got=got, expected="rows of video, metric, value", do=do) from error
    return [_row(path, number, row) for number, row in enumerate(rows, 1)]


def _rows(path: Path) -> list:
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".csv":
        return list(csv.DictReader(text.split("\n")))
    if path.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError(f"a {type(rows).__name__}, not a list")
    return rows


def _row(path: Path, number: int, row: object) -> tuple[str, str, float]:
    try:
        if not isinstance(row, Mapping):
            raise ValueError
        video, metric, value, method = row["video"], row["metric"], float(row["value"]), row.get("method")
        if not (isinstance(video, str) and video and isinstance(metric, str) and math.isfinite(value)):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        expected, do = "video (a name), metric (iqa or aes), value (a number)", "mend that row"
        raise UserError(f"row {number} of {path} is no score", got=repr(row), expected=expected, do=do) from error
    return f"{method}/{video}" if method else video, metric.lower(), value
