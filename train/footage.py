"""Which raw videos there are: all of a folder, or those of a published table that its owner has on disk.

A table (CSV or parquet) names a file in one column (`path`) and may describe it in another (`caption`). The tables of
OpenHumanVid, as those who use them read them, are OpenHumanVid_part_NNN.csv with clip_id, path, caption and scores;
their `path` is `clips/part_001/f6/05/NAME` without a suffix, the file part_001/f6/05/NAME.mp4. So a path is tried as it
is, with .mp4, and without its leading `clips/`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
LONGEST_FIELD = 1 << 24  # characters of a CSV's field; captions are longer than the csv module expects


@dataclass(frozen=True)
class Footage:
    """A raw video: its file, its path below the folder that was named, and what it shows, if a table says so."""

    path: Path
    origin: str
    prompt: str = ""


def in_folder(folder: Path, without: Path) -> list[Footage]:
    """The videos below `folder` in order of their names; neither hidden ones nor what lies in `without`, where our own
    results are. Raises UserError where there are none."""
    if not folder.is_dir():
        raise _nothing(folder, "no such folder")
    found, without = [], without.resolve()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file() and without not in path.resolve().parents:
            found.append(Footage(path, path.relative_to(folder).as_posix()))
    if not found:
        raise _nothing(folder, "no videos")
    return found


def in_table(table: Path, root: Path, path_column: str, caption_column: str) -> tuple[list[Footage], list[str]]:
    """The table's videos that lie below `root`, and the rows' paths that do not. Raises UserError for a table without
    the column of paths, and where no file of it is there."""
    found, absent = {}, []
    for row in read_table(table):
        if path_column not in row:
            raise UserError(
                f"{table} has no column {path_column}",
                got=some(row),
                expected=f"a column {path_column} with the path of each video",
                do="name the column that has it with --path-column",
            )
        stated = str(row[path_column] or "")
        path = located(root, stated)
        if path is None:
            absent.append(stated)
        else:
            origin = path.relative_to(root.resolve()).as_posix()
            found[path] = Footage(path, origin, str(row.get(caption_column) or ""))
    if not found:
        raise _nothing(
            root, f"none of the {len(absent)} files of {table}, {some(absent[:1]) or 'which has no rows'} first"
        )
    return list(found.values()), absent


def located(root: Path, stated: str) -> Path | None:
    """The file that a table's path means below `root`, or None; never one outside it."""
    root = root.resolve()
    for name in (stated, stated.removeprefix("clips/")):
        for path in (root / name, root / f"{name}.mp4"):
            path = path.resolve()
            if name and root in path.parents and path.is_file():
                return path
    return None


def read_table(path: Path) -> Iterator[dict]:
    """The rows of a CSV or parquet file. Raises UserError for a file that is neither, or damaged."""
    path = check_file(path, "table")
    yield from _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)


def _csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, str(error)) from error


def _parquet(path: Path) -> Iterator[dict]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        do = "pip install pyarrow, or bring the table as CSV"
        raise UserError("parquet tables need pyarrow", got=str(error), expected="pyarrow", do=do) from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, got: str) -> UserError:
    return UserError(f"cannot read the table {path}", got=got, expected="CSV (UTF-8) or parquet", do="check the file")


def _nothing(place: Path, got: str) -> UserError:
    suffixes = ", ".join(sorted(SUFFIXES))
    return UserError(f"{place} holds no footage", got=got, expected=f"videos ({suffixes})", do="check the path")
