"""One list of videos out of several: real clips, worse copies, candidates, imports, each in a folder of its own, become
the videos.jsonl (or .parquet) that labelling, scoring, pairs and cache take.

    python -m train.join --videos real/videos.jsonl candidates/videos.jsonl --out videos.jsonl

No video is copied: paths are written anew, relative to the new file. All other columns stay as they are.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file
from fantasy_core.media.files import replacing
from train.run import command, read_rows, setting
from train.tables import is_parquet, write_columns

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JoinSettings:
    videos: tuple[str, ...] = setting(help="files videos.jsonl or .parquet; paths in them are relative to each")
    out: Path = setting(help="the list of all of them, .jsonl or .parquet")


@dataclass(frozen=True)
class Named:
    """What a row must have."""

    video: str
    path: str
    input: str


def rows_in(path: Path) -> list[Row]:
    """The whole rows of a list. Raises UserError with the line."""
    if is_parquet(path):
        import pyarrow.parquet as pq

        rows = pq.read_table(check_file(path, "list of videos")).to_pylist()
        if wrong := [
            row for row in rows if not all(isinstance(row.get(name), str) for name in ("video", "path", "input"))
        ]:
            got, expected = repr(wrong[0]), "texts in the columns video, path, input"
            raise UserError(f"{path} is no list of videos", got=got, expected=expected, do="make the file again")
        return rows
    list(read_rows(path, Named))  # says what is wrong with a line
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def joined(lists: Iterable[Path], folder: Path) -> list[Row]:
    """All rows with paths relative to `folder`; a video that several lists have is kept once. Raises UserError for two
    videos of one name."""
    found: dict[str, tuple[Row, Path]] = {}
    clashes = []
    for path in lists:
        for row in rows_in(path):
            file = (path.parent / row["path"]).resolve()
            known, place = found.setdefault(row["video"], (row | {"path": os.path.relpath(file, folder)}, file))
            same = place == file or (known.get("sha256") and known["sha256"] == row.get("sha256"))
            clashes += [] if same else [f"{row['video']}: {place} and {file}"]
    if clashes:
        raise UserError(
            "two videos have one name",
            got=some(clashes),
            expected="names that tell all videos of all lists apart",
            do="make one of the lists with other inputs or another source's name",
        )
    if absent := [str(file) for _, file in found.values() if not file.is_file()]:
        do = "give the lists where they were made, or make the videos again"
        raise UserError("videos are not there", got=some(absent), expected="every file of the lists", do=do)
    return [row for row, _ in found.values()]


def write_list(path: Path, rows: list[Row]) -> None:
    """JSON lines, or the union of all columns as parquet; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_parquet(path):
        columns = dict.fromkeys(name for row in rows for name in row)
        write_columns(path, {name: [row.get(name) for row in rows] for name in columns}, {})
        return
    with replacing(path) as beside:
        beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def run(settings: JoinSettings, dry_run: bool) -> None:
    lists, out = [Path(path) for path in settings.videos], settings.out
    if out.suffix not in (".jsonl", ".parquet") or out.resolve() in [path.resolve() for path in lists]:
        do = "give --out another name"
        raise UserError("--out cannot be this file", got=str(out), expected="a new .jsonl or .parquet file", do=do)
    rows = joined(lists, out.resolve().parent)
    told = Counter((str(row.get("source", "unknown")), str(row.get("split", "-"))) for row in rows)
    for (source, split), count in sorted(told.items()):
        print(f"{source}, {split}: {count} videos")
    print(f"{len(rows)} videos of {len({row['input'] for row in rows})} inputs from {len(lists)} lists")
    if dry_run:
        print(f"dry run: {out} was not written")
        return
    write_list(out, rows)
    print(out)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(JoinSettings, __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())
