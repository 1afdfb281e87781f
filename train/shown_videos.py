"""The videos that people are shown: a list of them, their files, and what raters of a study see in their place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from fantasy_core.manifest import sha256
from fantasy_core.media import check_file
from fantasy_core.media.files import replacing
from fantasy_core.progress import Progress
from train.label_studio import addresses, shuffled, task
from train.run import read_rows, write_rows

STUDY = "study_videos"  # of a study's folder: the files by names that tell nothing, and the list that tells whose


@dataclass(frozen=True)
class Listed:
    """A line of videos.jsonl, as far as labelling goes; `path` is relative to the file."""

    video: str
    input: str
    path: str
    source: str = "unknown"
    variant: Any = None
    sha256: str = ""
    split: str = ""


@dataclass(frozen=True)
class Videos:
    """The videos by name, and their files. Every row has its file's hash: that of the list, or made now."""

    rows: dict[str, Listed]
    files: dict[str, Path]

    @classmethod
    def of(cls, path: Path) -> Videos:
        """The videos of a videos.jsonl. Raises UserError for a list that is none, and for a file that has no hash and
        is not there."""
        rows = {row.video: row for row in _once(path, list(read_rows(path, Listed)))}
        files = {name: path.parent / row.path for name, row in rows.items()}
        absent = [name for name, row in rows.items() if not row.sha256]
        with Progress("hashes", len(absent), shown=bool(absent)) as progress:
            for name in absent:
                own = sha256(check_file(files[name], "video"))
                rows[name] = dataclasses.replace(rows[name], sha256=own)
                progress.step(name)
        return cls(rows, files)

    def tasks(
        self, wanted: Sequence[tuple[str, str | None]], root: Path, prefix: str, seed: int
    ) -> list[dict[str, Any]]:
        """Label Studio's tasks for (video, dimension or None for all)."""
        urls = addresses({name: self.files[name] for name, _ in wanted}, root, prefix)
        made = (task(name, urls[name], self.rows[name].sha256, dimension) for name, dimension in wanted)
        return shuffled(made, seed)


def _once(path: Path, rows: list[Listed]) -> list[Listed]:
    twice = [name for name, n in Counter(row.video for row in rows).items() if n > 1]
    if twice or not rows:
        raise UserError(
            f"{path} is no list of videos",
            got=f"more than once: {some(twice)}" if twice else "no line",
            expected="every video once",
            do="correct the file",
        )
    return rows


# ---- a study ----


def blinded(videos: Videos, folder: Path, seed: int) -> Videos:
    """The same videos by names that tell neither method nor clip; their files will be in `folder`. Raises UserError for
    two videos of one method and clip: they would be two ratings of the same."""
    pairs = Counter((row.input, row.source) for row in videos.rows.values())
    several = [" ".join(pair) for pair, n in pairs.items() if n > 1]
    if several:
        raise UserError(
            "these videos are no user study",
            got=f"several videos of one input and source: {some(several)}",
            expected="one video of each method (source) for each clip (input)",
            do="keep one of them in the videos.jsonl of the study",
        )
    rows = {}
    for row in videos.rows.values():
        # The content is in the name, so that a video that was made anew is not rated under that of the old one.
        name = hashlib.sha256(f"{seed} {row.video} {row.sha256}".encode()).hexdigest()[:12]
        path = f"{STUDY}/{name}{Path(row.path).suffix.lower()}"
        rows[name] = dataclasses.replace(row, video=name, path=path)
    return Videos(rows, {name: folder / row.path for name, row in rows.items()})


def write_blinded(videos: Videos, shown: Videos, folder: Path) -> Path:
    """Put the files of `shown` (which are `videos`, in this order) into `folder`, linked where that can be, and write
    the list that tells whose they are: a videos.jsonl, which is returned. Raises UserError for a full disk."""
    (folder / STUDY).mkdir(parents=True, exist_ok=True)
    for original, place in zip(videos.files.values(), shown.files.values(), strict=True):
        with replacing(place) as beside:
            try:
                os.link(original.resolve(), beside)
            except OSError:  # another disk, or one without links
                shutil.copyfile(original, beside)
    key = folder / f"{STUDY}.jsonl"
    write_rows(key, list(shown.rows.values()))
    return key
