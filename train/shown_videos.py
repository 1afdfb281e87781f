"""The videos that people are shown: a list of them, their files, and what raters of a study see in their place."""

from __future__ import annotations

import dataclasses
import hashlib
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
from train.tables import videos_once

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
    def of(cls, path: Path, *, believed: bool = True) -> Videos:
        """The videos of a videos.jsonl. believed: hashes of the list are not made again. Raises UserError for a list
        that is none, for a file that is not there, if it is hashed, and for one that is another than the list says."""
        rows = {row.video: row for row in videos_once(path, Listed)}
        files = {name: path.parent / row.path for name, row in rows.items()}
        asked = [name for name, row in rows.items() if not (row.sha256 and believed)]
        changed = []
        with Progress("hashes", len(asked), shown=bool(asked)) as progress:
            for name in asked:
                own = sha256(check_file(files[name], "video"))
                changed += [name] if rows[name].sha256 not in ("", own) else []
                rows[name] = dataclasses.replace(rows[name], sha256=own)
                progress.step(name)
        if changed:
            raise UserError(
                f"{path} is older than its videos",
                got=f"other files than it lists: {some(changed)}",
                expected="files with the sha256 of their lines",
                do="make the list again, or bring back the files",
            )
        return cls(rows, files)

    def tasks(
        self, wanted: Sequence[tuple[str, str | None]], root: Path, prefix: str, seed: int
    ) -> list[dict[str, Any]]:
        """Label Studio's tasks for (video, dimension or None for all)."""
        urls = addresses({name: self.files[name] for name, _ in wanted}, root, prefix)
        made = (task(name, urls[name], self.rows[name].sha256, dimension) for name, dimension in wanted)
        return shuffled(made, seed)


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
        # The content is in the name: a video that was made anew has another one, and its old ratings are not its own.
        name = hashlib.sha256(f"{seed} {row.video} {row.sha256}".encode()).hexdigest()[:12]
        path = f"{STUDY}/{name}{Path(row.path).suffix.lower()}"
        rows[name] = dataclasses.replace(row, video=name, path=path)
    return Videos(rows, {name: folder / row.path for name, row in rows.items()})


def write_blinded(videos: Videos, shown: Videos, folder: Path) -> Path:
    """Copy the files of `videos` to those of `shown`, in this order, and write the list that tells whose they are: a
    videos.jsonl, which is returned. (A link would change under its raters with the file.) Raises UserError for a full
    disk, and for a folder with the list of a study of other videos, which alone tells what its raters saw."""
    key = folder / f"{STUDY}.jsonl"
    if key.is_file() and (lost := [row.video for row in read_rows(key, Listed) if row.video not in shown.rows]):
        raise UserError(
            f"{folder} holds another study",
            got=f"{len(lost)} videos that are not in this one, or were other files or had another --seed: {some(lost)}",
            expected="a new folder, or the same study with videos added",
            do=f"give another --out; {key} is needed for the ratings of the study that is there",
        )
    (folder / STUDY).mkdir(parents=True, exist_ok=True)
    with Progress("copies", len(shown.files)) as progress:
        for original, place in zip(videos.files.values(), shown.files.values(), strict=True):
            with replacing(place) as beside:
                shutil.copyfile(original, beside)
            progress.step(place.name)
    write_rows(key, list(shown.rows.values()))
    return key
