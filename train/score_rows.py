"""Rows of scores: what is said of a video, and of which content of its file, so that a remade file is scored again."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fantasy_core.critic.asked import LEAST_MASS
from fantasy_core.critic.critic import Score
from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from fantasy_core.pair_rules import DIMENSIONS
from train.scorers import Scorer, Video, no_number
from train.workers import WorkerKilled

NUMBER = re.compile(r"\d+\.\d+")  # in a warning: each row has its own
FEW = 3  # videos that fail alike, before the critic is at fault and not they
Row = dict[str, Any]
Job = tuple[Path, Video]


class Absent(UserError):
    """A file that cannot be opened now, and may be when the same command is given again."""


PASSING = (Absent, WorkerKilled)  # what may be the machine's trouble and not the video's: no row is written


def row_of(video: str, score: Score, scorer: Scorer) -> Row:
    z = {f"z_{d}": score.z[d] for d in DIMENSIONS} | {f"least_{d}": score.least[d] for d in DIMENSIONS}
    told = {"mass": score.mass, "windows": score.windows, "warnings": score.warnings}
    return {"video": video, **z, **told, "critic": scorer.critic, "views": scorer.views}


def failed_row(video: str, error: UserError, scorer: Scorer) -> Row:
    z = {f"z_{d}": None for d in DIMENSIONS}
    return {"video": video, **z, "critic": scorer.critic, "views": scorer.views, "failed": f"{error.what}: {error.got}"}


def lasting(
    told: Iterable[tuple[str, Score | UserError]], passing: dict[str, UserError]
) -> Iterator[tuple[str, Score | UserError]]:
    """What becomes a row; `passing` takes in the videos whose trouble may be the machine's."""
    for video, score in told:
        if isinstance(score, PASSING):
            passing[video] = score
        else:
            yield video, score


def rows_of(told: Iterable[tuple[str, Score | UserError]], scorer: Scorer) -> Iterator[Row]:
    """A row for every video. One whose score is no number has failed; where FEW have none and no other has one, the
    critic is at fault: UserError, and no row for them."""
    odd, numbers = [], False
    for video, score in told:
        if isinstance(score, UserError):
            yield failed_row(video, score, scorer)
        elif (error := no_number({f"z_{d}": score.z[d] for d in DIMENSIONS} | {"mass": score.mass})) is None:
            numbers = True
            yield row_of(video, score, scorer)
        else:
            odd.append(failed_row(video, error, scorer))
            if len(odd) == FEW and not numbers:
                raise error
        if numbers:
            yield from odd
            odd = []
    yield from odd


class Tally:
    """What is told of the rows of a run. `first`: after so many scores it is told if the critic answered none."""

    def __init__(self, first: int):
        self.first, self.count, self.low, self.reasons = first, 0, 0, []
        self.warnings: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        if "failed" in row:
            self.reasons.append(row["failed"])
            return
        self.count += 1
        self.low += row["mass"] < LEAST_MASS
        self.warnings.update(NUMBER.sub(f"less than {LEAST_MASS}", warning) for warning in row["warnings"])
        if self.count == self.first:
            self._look()

    def end(self) -> None:
        """Print how many rows have which warning."""
        if 0 < self.count < self.first:
            self._look()
        for warning, count in self.warnings.most_common():
            print(f"warning of {count} of {self.count} scores: {warning}")

    def _look(self) -> None:
        if self.low == self.count:
            print(
                f"warning: the first {self.count} scores are no answers: Yes and No have less than {LEAST_MASS} of the "
                "probability in all of them. Is --base Qwen2.5-Omni, and is --critic its adapter? z of such a critic "
                "says little: stop this run (ctrl-C) and look",
                file=sys.stderr,
            )


# ---- whose rows they are ----


def latest(rows: Iterable[Row], scorer: Scorer) -> dict[str, Row]:
    """By video the row of this critic and these views that counts: the one that `replaces` the others; of several that
    replace nothing one that did not fail."""
    found: dict[str, Row] = {}
    for row in rows:
        if (row.get("critic"), row.get("views")) == (scorer.critic, scorer.views):
            known = found.setdefault(row["video"], row)
            found[row["video"]] = row if _rank(row) >= _rank(known) else known
    return found


def _rank(row: Mapping[str, Any]) -> tuple[int, bool]:
    return row.get("replaces", 0), not row.get("failed")


def left_to_do(jobs: Sequence[Job], rows: Mapping[str, Row], again: bool) -> tuple[list[Job], dict[str, int]]:
    """Jobs without a row, with a row of another file, or, if they are tried `again`, with one that failed; and by video
    how many rows a new one replaces."""
    left, replaces = [], {}
    for path, video in jobs:
        row = rows.get(video.video)
        if row is not None and not (again and row.get("failed")) and is_of(row, path, video):
            continue
        left.append((path, video))
        if row is not None:
            replaces[video.video] = row.get("replaces", 0) + 1
    return left, replaces


# ---- whose file they are of ----


def state_of(path: Path) -> Row:
    """What tells a file's content from another's. Raises OSError where it cannot be read."""
    stat = path.stat()
    return {"sha256": sha256(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def read_with_state(read: Callable[[Job], Any], job: Job) -> tuple[Row, Any]:
    """(what a row says of the file, what `read` made of it or the UserError that it raised). A list that tells the hash
    is believed, and no file is hashed, except for one that cannot be used: it may not be the one that is listed. Raises
    Absent for a file that cannot be opened."""
    path, video = job
    _check_there(path)
    listed = {"sha256": video.sha256} if video.sha256 else {}
    try:
        found = read(job)
    except UserError as error:
        _check_there(path)  # it may be gone by now
        listed, found = {}, error
    try:
        return listed or state_of(path), found
    except OSError as error:
        raise _absent(path, error) from error


def _check_there(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise _absent(path, error) from error


def _absent(path: Path, error: OSError) -> Absent:
    return Absent(
        f"cannot open {path}",
        got=error.strerror or str(error),
        expected="the file that is listed",
        do="bring it, and give the same command again",
    )


def is_of(row: Mapping[str, Any], path: Path, video: Video) -> bool:
    """Whether a row is of the file that is listed. Files are looked at only where the list has no hash, or another, and
    read only where their size is the same and their time is not. Rows without a hash, of earlier versions, count."""
    known = row.get("sha256")
    if not known or known == video.sha256:
        return True
    try:
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (row.get("size"), row.get("mtime_ns")):
            return True
        return not video.sha256 and stat.st_size == row.get("size", stat.st_size) and sha256(path) == known
    except OSError:
        return not video.sha256  # who deleted a video after it was scored keeps its score
