"""Raw footage becomes clips of one speaking person: the real half of the critic's and the trainer's data.

    python -m train.clips --footage my_videos --out real --task face_landmarker.task --workers 4
    python -m train.clips --table OpenHumanVid_part_001.csv --root OpenHumanVid --out real --task face_landmarker.task

Footage is cut at scene changes, and each scene into clips of `--frames` at `--fps`. A clip is kept if it has voice,
one face through it, wide enough and not in profile, and lips in sync with the voice. Sync is measured without weights
and needs five seconds: clips of a scene (or of a file, `--pool file`) are judged together, and where there still is no
verdict, `--unsure` keeps or drops them. Pictures are never stretched or enlarged: without `--height` and `--width` they
lose what a multiple of 16 leaves over, with them they are cut around the face and scaled down.

Writes clips/NAME.mp4 with sound, videos.jsonl (besides the usual columns: origin, start in seconds, offset in frames,
> 0 where the picture is late, face in pixels, prompt) and report.json: what was dropped by which rule. All clips of a
file are in one split. Finished files are in done.jsonl and are not done again, by content and settings: a killed run
loses the files it was at. Where no clip is kept the command ends with code 2, after report.json is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fantasy_core import lips, media
from fantasy_core.audio import check_frames
from fantasy_core.errors import UserError
from fantasy_core.manifest import remove_partials, sha256
from fantasy_core.media.images import check_side
from fantasy_core.progress import Progress
from train.clip_file import ClipRules, Outcome, make_clips
from train.clip_report import SAMPLE, print_report, report_of
from train.footage import Footage, in_folder, in_table
from train.journal import Journal
from train.run import as_json, command, made_from, setting, write_json, write_rows
from train.splits import split_of
from train.workers import WorkerKilled, each


@dataclass(frozen=True)
class ClipSettings:
    out: Path = setting(help="folder for the clips")
    footage: Path | None = setting(None, "folder of videos, with those below it")
    table: Path | None = setting(None, "instead: a published table, CSV or parquet")
    root: Path | None = setting(None, "the folder that the table's paths are below")
    path_column: str = setting("path", "the table's column of paths")
    caption_column: str = setting("caption", "its column of descriptions, which become prompts, if there is one")
    task: Path | None = setting(None, "mediapipe's face_landmarker.task")
    fps: float = setting(23.0, "of the clips", least=1.0)
    frames: int = setting(81, "of a clip, 4k + 1", least=5)
    min_frames: int = setting(49, "of the last clip of a scene, 4k + 1", least=5)
    height: int | None = setting(None, "of the clips, a multiple of 16; with --width")
    width: int | None = setting(None, "of the clips, a multiple of 16")
    scene_change: float = setting(
        0.1, "least mean difference of neighbouring frames at a cut, of 1", least=0.0, most=1.0
    )
    voiced: float = setting(0.5, "least share of a clip's time with voice", least=0.0, most=1.0)
    min_face: float = setting(96.0, "least width of the face in pixels of the footage", least=16.0)
    second_face: float = setting(0.5, "least size of another face that is one too many, of the first", least=0.0)
    max_offset: int = setting(2, "most frames that lips may be off", least=0)
    unsure: str = setting("keep", "clips without a verdict on sync", choices=("keep", "drop"))
    pool: str = setting("scene", "whose clips are judged together on sync", choices=("scene", "file"))
    test_share: float = setting(0.1, "of the footage files whose clips are for tests", least=0.0, most=1.0)
    workers: int = setting(1, "processes", least=1)


@dataclass(frozen=True)
class ClipRow:
    """A row of videos.jsonl; `path` is relative to the file, `start` in seconds of the footage `origin`."""

    video: str
    input: str
    path: str
    sha256: str
    fps: float
    frames: int
    width: int
    height: int
    split: str
    origin: str
    start: float
    offset: int | None
    face: int
    prompt: str
    source: str = "real"
    variant: int = 0


def rules_of(settings: ClipSettings) -> ClipRules:
    """The settings that decide what a file becomes. Raises UserError for sizes and lengths that cannot be."""
    for frames in (settings.frames, settings.min_frames):
        check_frames(frames)
    if settings.min_frames > settings.frames or (settings.height is None) != (settings.width is None):
        sides = f"--height {settings.height}, --width {settings.width}"
        raise UserError(
            "the clips' size or length is not clear",
            got=f"--frames {settings.frames}, --min-frames {settings.min_frames}, {sides}",
            expected="no more --min-frames than --frames, and both sides or none",
            do="correct these settings",
        )
    sides = (settings.height, settings.width)
    size = None if settings.height is None else tuple(check_side(side) for side in sides)
    names = [field.name for field in dataclasses.fields(ClipRules) if field.name != "size"]
    return ClipRules(size=size, **{name: getattr(settings, name) for name in names})


def footage_of(settings: ClipSettings) -> tuple[list[Footage], list[str]]:
    """The videos that are there, and the table's paths that are not."""
    if settings.footage is not None and settings.table is None:
        return in_folder(settings.footage, settings.out), []
    if settings.table is not None and settings.root is not None and settings.footage is None:
        return in_table(settings.table, settings.root, settings.path_column, settings.caption_column)
    raise UserError(
        "there is no footage to cut",
        got=", ".join(f"--{n}" for n in ("footage", "table", "root") if getattr(settings, n) is not None)
        or "none named",
        expected="--footage, or --table and --root",
        do="name a folder of videos, or a table and the folder its files are in",
    )


def fingerprint(rules: ClipRules, task: Path | None) -> str:
    """A hash of all that decides what a file becomes: the rules, and the model that finds faces."""
    told = {"rules": asdict(rules), "task": "" if task is None else sha256(task)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def key_of(content: str, prompt: str, rules: str) -> str:
    """The key of an outcome: a hash of content, prompt and rules, behind that of the rules."""
    return f"{rules}-{hashlib.sha256(f'{content} {prompt}'.encode()).hexdigest()[:16]}"


def finished(out: Path, rules: str) -> dict[str, Outcome]:
    """What earlier runs with these rules have finished, by key; not where clips are gone."""
    found = {}
    for line in Journal(out / "done.jsonl").read():
        outcome = Outcome(**line)
        if outcome.key.startswith(rules) and all((out / row["path"]).is_file() for row in outcome.clips):
            found[outcome.key] = outcome
    return found


def left_to_do(
    footage: list[Footage], rules: str, done: dict[str, Outcome], progress: Progress, failed: list[Outcome]
) -> Iterator[tuple[Footage, Outcome]]:
    """Footage that is not finished, each content once, with an empty outcome; files that cannot be opened are
    `failed`."""
    begun = set(done)
    for one in footage:
        try:
            content = sha256(media.check_file(one.path, "video"))
        except (UserError, OSError) as error:
            failed.append(Outcome("", one.origin, "", failed=str(error).splitlines()[0]))
            progress.step(one.origin)
            continue
        key = key_of(content, one.prompt, rules)
        if key in begun:
            progress.step(one.origin)
        else:
            begun.add(key)
            yield one, Outcome(key, one.origin, content)


def run(settings: ClipSettings, dry_run: bool) -> None:
    rules, (footage, absent) = rules_of(settings), footage_of(settings)
    with lips.landmarker(settings.task):
        pass  # what is missing is said before anything is done
    if dry_run:
        tell_plan(settings, footage, absent)
        return
    name, failed = fingerprint(rules, settings.task), []
    clean(settings.out)
    done = finished(settings.out, name)
    work = functools.partial(make_clips, out=settings.out, rules=rules, task=settings.task)
    workers = 0 if settings.workers == 1 else settings.workers
    try:
        with Journal(settings.out / "done.jsonl") as journal, Progress("clips", len(footage)) as progress:
            jobs = left_to_do(footage, name, done, progress, failed)
            with contextlib.closing(each(work, jobs, workers, in_order=False)) as outcomes:
                for (_, begun), outcome in outcomes:
                    if isinstance(outcome, WorkerKilled):  # for want of memory, perhaps: the next run tries again
                        failed.append(dataclasses.replace(begun, failed=f"{outcome.what}: {outcome.got}"))
                    elif isinstance(outcome, UserError):
                        raise outcome
                    else:
                        journal.append(asdict(outcome))
                        done[outcome.key] = outcome
                    progress.step(begun.origin)
    finally:
        clean(settings.out)  # workers end at once after Ctrl-C, and those of a killed run may have ended only now
    finish(settings, [*done.values(), *failed], absent)


def finish(settings: ClipSettings, outcomes: list[Outcome], absent: list[str]) -> None:
    """Write videos.jsonl and report.json from all that is finished, in order of the clips' names. Raises UserError for
    no clip at all, when all is written."""
    splits = {one.sha256: split_of(one.sha256, settings.test_share) for one in outcomes if one.sha256}
    rows = [ClipRow(**row, split=splits[one.sha256]) for one in outcomes for row in one.clips]
    rows.sort(key=lambda row: row.video)
    write_rows(settings.out / "videos.jsonl", rows)
    files = {"table": settings.table, "task": settings.task}
    report = report_of(outcomes, absent) | {"splits": dict(sorted(Counter(row.split for row in rows).items()))}
    origin = made_from({key: path for key, path in files.items() if path is not None})
    write_json(settings.out / "report.json", {"settings": as_json(vars(settings)), "made_from": origin, **report})
    print_report(report)
    if not rows:
        read, why = report["files"]["read"], {rule: told["spans"] for rule, told in report["dropped"].items()}
        spans = ", ".join(f"{count} by {rule}" for rule, count in why.items()) or "no scene"
        raise UserError(
            "no clip was kept",
            got=f"{read} files read, dropped: {spans}" if read else f"no file read: {report['files']}",
            expected="footage of one speaking person, with sound",
            do=f"see {settings.out / 'report.json'} for what was dropped where, and give other footage or milder rules",
        )


def clean(out: Path) -> None:
    """Remove what killed processes were writing."""
    for part in (out / "clips").glob(".*.part"):
        remove_partials(out / "clips" / part.name[1:].rsplit(".", 2)[0])


def tell_plan(settings: ClipSettings, footage: list[Footage], absent: list[str]) -> None:
    """Print the files and their lengths, as their headers state them."""
    total = 0.0
    for one in footage[:SAMPLE]:
        try:
            seconds, sound = media.video_header(one.path)
            total += seconds
            print(f"{one.origin}: {seconds:.1f} s" + ("" if sound else ", no sound"))
        except UserError as error:
            print(f"{one.origin}: cannot be read ({error.got})")
    more = f" (the first {SAMPLE})" if len(footage) > SAMPLE else ""
    print(f"dry run: {len(footage)} files, {total:.1f} s{more}, would be cut into {settings.out}")
    if absent:
        print(f"{len(absent)} of the table are absent, {absent[0]} first")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(ClipSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
