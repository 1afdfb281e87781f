"""Labels that nothing can be learnt from: their video cannot be read, or shows no face where the face is what is shown.

They are found before the first step by one pass over the labelled files, which several processes share. What was seen
is kept in the run folder (looked_at/part-RANK.jsonl), and files that have not changed since are not looked at again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fantasy_core.critic.asked import Views
from fantasy_core.errors import UserError, some
from fantasy_core.manifest import sha256
from fantasy_core.progress import Progress
from train.distributed import World
from train.journal import part_of, read_parts
from train.run import write_json
from train.scorers import prepare_reader, unseen
from train.workers import WorkerKilled, each

Label = tuple[str, str]  # video, dimension


def left_out(
    labels: Iterable[Label],
    files: Mapping[str, Path],
    views: Views,
    task: Path | None,
    out: Path,
    *,
    workers: int,
    world: World,
) -> dict[Label, str]:
    """The labels that cannot be learnt from, and why. All processes look at a share of the files and return the same.
    Raises UserError for a file that killed its reading process."""
    asked: dict[str, set[str]] = {}
    for video, dimension in labels:
        asked.setdefault(video, set()).add(dimension)
    folder, task = out / "looked_at", task if views.crops_face else None
    given = "" if task is None else sha256(task)
    keys = {v: _key(v, files[v], sorted(d), views.only(sorted(d)), given) for v, d in sorted(asked.items())}
    known = {row["key"] for row in read_parts(folder)}
    todo = [video for video in list(keys)[world.rank :: world.size] if keys[video] not in known]
    jobs = [(files[video], tuple(sorted(asked[video]))) for video in todo]
    if jobs:
        with part_of(folder, world.rank) as part, Progress("look", len(jobs), shown=world.is_main) as progress:
            seen = each(unseen, jobs, workers, prepare=prepare_reader, given=(views, task))
            for video, (_, told) in zip(todo, seen, strict=True):
                if isinstance(told, WorkerKilled):  # for want of memory, perhaps
                    raise told
                whys = dict.fromkeys(asked[video], f"{told.what}: {told.got}") if isinstance(told, UserError) else told
                part.append({"key": keys[video], "video": video, "without": whys})
                progress.step(video)
    world.agree("labelled files looked at")
    rows = {row["key"]: row for row in read_parts(folder)}
    return {(video, d): why for video, key in keys.items() for d, why in sorted(rows[key]["without"].items())}


def _key(video: str, file: Path, dimensions: Sequence[str], views: Views, task: str) -> str:
    """What a look depends on; the file's time and size stand for its content."""
    stat = file.stat()
    told: dict[str, Any] = {"video": video, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "task": task}
    return json.dumps(told | {"dimensions": dimensions, "views": asdict(views)}, sort_keys=True)


def keep(found: Mapping[Label, str], out: Path, begun: bool) -> None:
    """Write what is left out to OUT/left_out.json. Raises UserError where the run has `begun` with others left out: it
    could not go on with the same order of labels."""
    file, rows = out / "left_out.json", [[*label, why] for label, why in sorted(found.items())]
    if begun:
        old = json.loads(file.read_text("utf-8"))["left_out"] if file.is_file() else []
        changed = {" ".join(row[:2]) for row in old} ^ {" ".join(row[:2]) for row in rows}
        if changed:
            raise UserError(
                f"videos have changed since the run in {out} began",
                got=f"labels that can be learnt from now, or no longer: {some(changed)}",
                expected="the videos that it began with",
                do="bring these back, or train into another folder",
            )
    elif rows:
        write_json(file, {"left_out": rows})
    else:
        file.unlink(missing_ok=True)
