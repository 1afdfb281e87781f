"""Videos that other programs made, as candidates: files INPUT_VARIANT.mp4 in a folder, or the rows of a table in it.

The table is `videos.csv` with the columns file, input, variant and, if they are known, seed, text_scale, audio_scale.
Files stay where they are; where another rate or length is asked for, a copy goes to candidates/. What cannot be read is
a failure, and the rest goes on.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import UserError, some
from fantasy_core.manifest import remove_partials
from fantasy_core.progress import Progress
from train.candidate_jobs import Failures
from train.candidate_lengths import Kept, cut
from train.candidate_rows import Log, Measured, VideoRow, measure
from train.comfy_client import VIDEOS
from train.source_workflows import SAFE

TABLE = "videos.csv"
COLUMNS = ("file", "input", "variant", "seed", "text_scale", "audio_scale")
NAMED = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True)
class Found:
    """A file and what is known of how it was made."""

    file: Path
    source: str
    input: str
    variant: int
    seed: int | None = None
    text_scale: float | None = None
    audio_scale: float | None = None
    name: str = ""  # where it is not the usual one

    @property
    def video(self) -> str:
        return self.name or f"{self.input}_{self.source}_{self.variant}"


@dataclass(frozen=True)
class Known:
    """What inputs.jsonl says of an input, and what every video of it must be, where that is known."""

    prompt: str = ""
    split: str = "train"
    kept: Kept | None = None


def folder_of(flag: str) -> tuple[str, Path]:
    """NAME=DIR. Raises UserError."""
    name, _, folder = flag.partition("=")
    if not SAFE.fullmatch(name) or not folder or not Path(folder).is_dir():
        raise UserError(
            "a folder of videos is not named", got=flag, expected="NAME=DIR, an existing folder",
            do="give --from-folder omniavatar=DIR; the name becomes the videos' source",
        )  # fmt: skip
    return name, Path(folder)


def find_videos(name: str, folder: Path, failures: Failures) -> list[Found]:
    """The videos of a folder. Raises UserError for a folder without any, and for a table that is none."""
    table = folder / TABLE
    found = list(_of_table(name, folder, table, failures) if table.is_file() else _of_names(name, folder, failures))
    if not found:
        raise UserError(
            f"{folder} holds no videos that could be candidates",
            got="nothing of that kind",
            expected=f"files INPUT_VARIANT with {', '.join(VIDEOS)}, or {TABLE} with {', '.join(COLUMNS)}",
            do="rename the files, or write a table",
        )
    return found


def _of_names(name: str, folder: Path, failures: Failures) -> Iterator[Found]:
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in VIDEOS or file.name.startswith("."):
            continue
        told = NAMED.fullmatch(file.stem)
        if told is None or not SAFE.fullmatch(told[1]):
            failures.add(str(file), "its name is not INPUT_VARIANT")
        else:
            yield Found(file, name, told[1], int(told[2]))


def _of_table(name: str, folder: Path, table: Path, failures: Failures) -> Iterator[Found]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        if not {"file", "input", "variant"} <= columns or columns - set(COLUMNS):
            raise UserError(
                f"{table} is not a table of videos",
                got=some(columns) or "no columns",
                expected=", ".join(COLUMNS) + " (the last three may be absent)",
                do="correct its first line",
            )
        for number, row in enumerate(rows, 2):
            try:
                yield _of_row(name, folder, row)
            except (ValueError, TypeError, AttributeError) as error:
                failures.add(f"line {number} of {table}", str(error))


def _of_row(name: str, folder: Path, row: dict[str, str]) -> Found:
    """Raises ValueError for what is no row."""
    file = (folder / row["file"]).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{row['file']} lies outside the folder")
    if not SAFE.fullmatch(row["input"]):
        raise ValueError(f"{row['input']!r} is no id of an input")
    seed = int(row["seed"]) if row.get("seed") else None
    scales = [float(row[scale]) if row.get(scale) else None for scale in ("text_scale", "audio_scale")]
    return Found(folder / row["file"], name, row["input"], int(row["variant"]), seed, *scales)


def measured_rows(
    found: list[Found], known: Mapping[str, Known] | None, log: Log, failures: Failures, fps: float | None = None
) -> list[VideoRow]:
    """Rows for the videos, brought to `fps` if it is given. `known` inputs, where they are given, are the only ones
    there can be. Files that have not changed since the log told of them are not decoded again."""
    rows: dict[str, VideoRow] = {}
    with Progress("measure", len(found)) as progress:
        for one in found:
            wrong = _wrong(one, known, rows)
            try:
                if wrong is None:
                    rows[one.video] = _measured(one, (known or {}).get(one.input, Known()), log, fps)
            except UserError as error:
                wrong = f"{error.what} ({error.got})"
                log.fail(one.video, wrong)
            if wrong is not None:
                failures.add(str(one.file), wrong)
            progress.step(one.video)
    return list(rows.values())


def _wrong(one: Found, known: Mapping[str, Known] | None, rows: Mapping[str, VideoRow]) -> str | None:
    """Why a video cannot be taken, before it is opened."""
    if known is not None and one.input not in known:
        return f"there is no input {one.input}"
    if one.video in rows:
        return "this variant is there twice"
    return None if one.file.is_file() else "no such file"


def _measured(one: Found, known: Known, log: Log, fps: float | None) -> VideoRow:
    state, folder = one.file.stat(), log.path.parent
    made = f"file of {state.st_size} bytes, {state.st_mtime_ns} ns"
    made += f", {known.kept or f'{fps:g} frames a second'}" if known.kept or fps else ""
    place = Path(os.path.relpath(one.file.resolve(), folder.resolve())).as_posix()
    copy = f"candidates/{one.video}.mp4"
    before = log.find(one.video, made)
    if before is not None and before.path in (place, copy):
        place, told = before.path, _told(before)
    else:
        told = measure(one.file)
        kept = known.kept or (Kept(int(told.frames / told.fps * fps + 1e-3), fps) if fps else None)
        if kept is not None and not kept.fits(told) and log.kept:
            place, told = copy, _copied(one.file, folder / copy, kept)
    drawn = (one.seed, one.text_scale, one.audio_scale)
    video = VideoRow(
        one.video, one.input, place, told.sha256, one.source, one.variant, *drawn, told.fps, told.frames, told.width,
        told.height, known.split, known.prompt,
    )  # fmt: skip
    if video != before:
        log.add(made, video)
    return video


def _copied(file: Path, copy: Path, kept: Kept) -> Measured:
    copy.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(copy)
    cut(file, copy, kept)
    return measure(copy)


def _told(row: VideoRow) -> Measured:
    return Measured(row.sha256, row.fps, row.frames, row.width, row.height)
