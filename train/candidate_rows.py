"""What is known of videos: rows of videos.jsonl, how a file is measured, and the log in which nothing is ever lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from fantasy_core.media import read_video
from train.journal import Journal
from train.run import read_rows


@dataclass(frozen=True)
class Measured:
    """A video file that was decoded to its end."""

    sha256: str
    fps: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class VideoRow:
    """A line of videos.jsonl; `path` is relative to it. Seed and scales are None where nobody knows them."""

    video: str
    input: str
    path: str
    sha256: str
    source: str
    variant: int
    seed: int | None
    text_scale: float | None
    audio_scale: float | None
    fps: float
    frames: int
    width: int
    height: int
    split: str
    prompt: str


def measure(path: Path) -> Measured:
    """Decode a video, one frame at a time. Raises UserError for one that is damaged or has a single frame."""
    count, last, height, width = 0, 0.0, 0, 0
    for last, frame in read_video(path):  # noqa: B007
        count, (_, height, width) = count + 1, frame.shape
    if count < 2 or last <= 0:
        raise UserError(
            f"{path} is not a moving picture", got=f"{count} frame", expected="two or more", do="bring another file"
        )
    return Measured(sha256(path), round((count - 1) / last, 3), count, width, height)


def earlier_rows(path: Path, made: Callable[[VideoRow], bool]) -> list[VideoRow]:
    """The rows of a list from commands before this one, whose files are there, less those that this one `made` or could
    not make."""
    rows = read_rows(path, VideoRow) if path.is_file() else ()
    return [row for row in rows if not made(row) and (path.parent / row.path).is_file()]


class Log:
    """A journal with a line for every video that was made or measured, with the hash of what it was made from, and one
    for every failure. A context manager, held by one run. Not `kept`, nothing is written."""

    def __init__(self, path: Path, kept: bool = True):
        self.path, self.journal = path, Journal(path)
        self.kept, self._held = kept, self.journal if kept else nullcontext()
        lines = (line for line in self.journal.read() if "row" in line)
        self._rows = {line["row"]["video"]: (line["made"], line["row"]) for line in lines}

    def __enter__(self) -> Log:
        self._held.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._held.__exit__(*error)

    def find(self, video: str, made: str) -> VideoRow | None:
        """The row of a video that was made from just this and whose file is there."""
        known, row = self._rows.get(video, (None, {}))
        if known != made or not (self.path.parent / row["path"]).is_file():
            return None
        return VideoRow(**row)

    def add(self, made: str, row: VideoRow) -> None:
        told = dataclasses.asdict(row)
        self._append({"made": made, "row": told})
        self._rows[row.video] = (made, told)

    def fail(self, video: str, why: str) -> None:
        self._append({"failed": video, "why": why})

    def _append(self, told: dict) -> None:
        if self.kept:
            self.journal.append(told)
