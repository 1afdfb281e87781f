"""Talking-Critic's scores of many videos: one row a video, resumable, on one process or one for each GPU.

    python -m train.score --videos videos.jsonl --base models/Qwen2.5-Omni-7B --critic runs/critic/adapter \\
        --task face_landmarker.task --device cuda --out scores
    torchrun --nproc_per_node 8 -m train.score ...                                  # every 8th video each

Each process appends to scores/part-RANK.jsonl: video, z_mn, z_ls, z_vq (logit of Yes less logit of No, the mean over
windows of at most five seconds), least_mn ..., mass (probability of Yes and No together), windows, warnings, and the
hashes `critic` and `views`. Nothing is scored twice by the same critic in the same views, however often the command is
given and however many processes there are, unless its file has changed: rows have the `sha256` of videos.jsonl, or else
that of the file with its size and time, and a row that `replaces` older ones counts in their place. A video that cannot
be read, or whose score is no number (fp16 may overflow), is a row with `failed`; one whose file is not there, or whose
decoder was killed, has no row, is told at the end (exit code 2 of one process) and scored by the next run. Before the
first score a canary: lip sync must react to silence, to late sound, and to the adapter, on one of three clips.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fantasy_core.critic.about import ADAPTER, merged_about, read_about, views_for
from fantasy_core.critic.asked import FACES, Views
from fantasy_core.critic.critic import Critic, Score
from fantasy_core.critic.sizes import sizes_of
from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file
from fantasy_core.progress import Progress
from train.critic_plan import look, score_plan
from train.distributed import join
from train.journal import part_of, read_parts
from train.run import command, made_from, setting, write_json
from train.score_rows import FEW, Job, Row, Tally, lasting, latest, left_to_do, read_with_state, rows_of
from train.scorers import CriticScorer, Scorer, Video, check_task, read_videos
from train.workers import each

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class ScoreSettings:
    videos: Path = setting(help="videos.jsonl or .parquet: video, path (relative to it), input, sha256")
    out: Path = setting(help="folder of the part files")
    base: Path | None = setting(None, "folder of Qwen2.5-Omni")
    critic: Path | None = setting(None, "adapter folder of train.critic; without one the base is asked")
    judge: str = setting("none", "instead of a critic: the exact judge of this world", choices=("none", "miniature"))
    views: str | None = setting(None, "separate or shared (the adapter's own, else separate)")
    task: Path | None = setting(None, "face_landmarker.task, for the view of the face")
    face: str | None = setting(
        None, "whole: views of the face show all of the frame (the adapter's own, else found)", choices=FACES
    )
    engine: str = setting("transformers", "what runs the model (vllm: unverified)", choices=("transformers", "vllm"))
    device: str = setting("cpu", "cpu or cuda")
    dtype: str = setting("bf16", "of the model", choices=tuple(DTYPES))
    batch: int = setting(32768, "tokens of a batch", least=1)
    pool: int = setting(16, "videos that are sorted into batches together", least=1)
    workers: int = setting(2, "processes that decode, for each that scores; 0: itself", least=0)
    canary: bool = setting(True, "stop before the first score if the critic does not react")
    again: bool = setting(False, "try videos again that failed before")


def scorer_of(settings: ScoreSettings, device: torch.device) -> Scorer:
    """What the settings ask for, loaded. Raises UserError for what is missing."""
    if settings.judge == "miniature":
        from train.miniature_judge import MiniatureJudge

        return MiniatureJudge()
    check_settings(settings)
    assert settings.base is not None
    if settings.engine == "vllm":
        from train.vllm_engine import VllmCritic

        critic = VllmCritic.load(settings.base, settings.views, settings.face)
    else:
        told = {"views": settings.views, "face": settings.face, "dtype": DTYPES[settings.dtype], "device": device}
        critic = Critic.load(settings.base, settings.critic, **told)
    return CriticScorer(critic, settings.batch, settings.task if critic.views.crops_face else None)


def check_settings(settings: ScoreSettings) -> None:
    """Raise UserError for what can be known before a model is loaded."""
    if settings.base is None:
        raise UserError(
            "there is nothing that scores",
            got="no --base and no --judge",
            expected="a folder of Qwen2.5-Omni, with --critic or without",
            do="give --base",
        )
    if settings.engine == "vllm" and settings.critic is not None:
        raise UserError(
            "vLLM is given a whole model here",
            got="--engine vllm with --critic",
            expected="the adapter merged into its base",
            do="merge them (train.critic merge) and give the result as --base",
        )
    check_file(settings.base / "config.json", "model's configuration")
    if settings.critic is not None:
        check_file(settings.critic / ADAPTER, "critic's adapter")
    views = views_asked(settings)
    if views.crops_face:
        check_task(settings.task, views)


def views_asked(settings: ScoreSettings) -> Views:
    """What the critic will be shown."""
    assert settings.base is not None
    about = merged_about(settings.base) if settings.critic is None else read_about(settings.critic)
    return views_for(about, settings.views, settings.face)


def check_canary(scorer: Scorer, found: Sequence[tuple[Any, Any]]) -> bool:
    """Whether one of these clips was a canary that reacted, which is told. Raises UserError when FEW did not, or all
    there are: a clip of steady noise or of a still mouth may be the same late or silent."""
    still: list[UserError] = []
    for video, clip in ((video.video, clip) for (_, video), clip in found if not isinstance(clip, UserError)):
        try:
            told = scorer.canary(clip)
        except UserError as error:
            still.append(error)
            print(f"canary {video}: {error.got}: {error.what}")
            if len(still) == FEW:
                break
            continue
        if told:
            print(f"canary {video}: " + ", ".join(f"z {value:+.3f} ({name})" for name, value in told.items()))
            return True
    if still:
        raise still[0]
    return False


def score_all(
    settings: ScoreSettings, jobs: Sequence[Job], scorer: Scorer, files: dict[str, Row]
) -> Iterator[tuple[str, Score | UserError]]:
    """(video, its score or why it has none), as soon as it is known. `files` takes in what their rows say of theirs."""
    sung = not settings.canary
    work = partial(read_with_state, scorer.read)
    read = each(work, jobs, settings.workers, prepare=scorer.prepare, given=scorer.given)
    while told := list(islice(read, settings.pool)):
        pool = [(job, found if isinstance(found, UserError) else found[1]) for job, found in told]
        files |= {video.video: found[0] for (_, video), found in told if not isinstance(found, UserError)}
        sung = sung or check_canary(scorer, pool)
        yield from ((video.video, error) for (_, video), error in pool if isinstance(error, UserError))
        good = [(video.video, clip) for (_, video), clip in pool if not isinstance(clip, UserError)]
        for number, score in scorer.scores([clip for _, clip in good]):
            yield good[number][0], score
    if jobs and not sung and settings.judge == "none":
        print(
            "warning: no canary: no video that could be read has half a second of sound, and a face if that is shown. "
            "Whether the critic hears is unknown"
        )


def check_end(count: int, passing: dict[str, UserError], reasons: Sequence[str], any_score: bool) -> None:
    """Raise UserError where videos have no row, or where all rows say that they failed."""
    if passing:
        raise UserError(
            f"{len(passing)} of {count} videos could not be scored now and have no row",
            got=some(f"{video}: {error.what} ({error.got})" for video, error in passing.items()),
            expected="files that are there, and memory to decode them",
            do="mend that and give the same command again: it scores the videos that have no row",
        )
    if reasons and not any_score:
        raise UserError(
            f"no video has a score: {len(reasons)} of {count} failed",
            got=some(set(reasons)),
            expected="videos that can be decoded",
            do="mend the files and give the same command again (--again true for what is not a file's fault)",
        )


def run(settings: ScoreSettings, dry_run: bool) -> None:
    videos, world = read_videos(settings.videos), join(settings.device)
    if dry_run:
        if settings.judge == "none":
            check_settings(settings)
        tell_plan(settings, videos)
        return
    scorer = scorer_of(settings, world.device)
    rows = latest(read_parts(settings.out), scorer)
    own = [(settings.videos.parent / video.path, video) for video in videos[world.rank :: world.size]]
    jobs, replaces = left_to_do(own, rows, settings.again)
    print(f"{len(own)} of {len(videos)} videos for this process, {len(own) - len(jobs)} of them scored already")
    if remade := [name for name in replaces if not rows[name].get("failed")]:
        print(f"other files than were scored, scored again: {some(remade)}")
    tally, files, passing = Tally(settings.pool), {}, {}
    with part_of(settings.out, world.rank) as part, Progress("score", len(jobs), shown=world.is_main) as progress:
        for row in rows_of(lasting(score_all(settings, jobs, scorer, files), passing), scorer):
            old = {name: count for name, count in [("replaces", replaces.get(row["video"]))] if count}
            part.append(row | files.pop(row["video"], {}) | old)
            tally.add(row)
            progress.step(row["video"])
    if world.is_main:
        named = {name: str(getattr(settings, name)) for name in ("base", "critic", "judge", "engine")}
        told = {"critic": scorer.critic, "views": scorer.views, "given": named}
        write_json(settings.out / "scorer.json", told | {"made_from": made_from({"videos": settings.videos})})
    tally.end()
    print(f"{tally.count + len(tally.reasons)} scored, {len(tally.reasons)} of them failed; rows are in {settings.out}")
    print(f"critic {scorer.critic}, views {scorer.views}")
    any_score = bool(tally.count) or any(not row.get("failed") for row in rows.values())
    try:
        check_end(len(jobs), passing, tally.reasons, any_score)
    except UserError as error:
        if world.size == 1:
            raise
        # no error here: torchrun stops all processes when one ends with one
        print(f"warning: process {world.rank}: {error}", file=sys.stderr)


def tell_plan(settings: ScoreSettings, videos: Sequence[Video]) -> None:
    """Print what there is to score and what it costs. Whose the rows are that are there is known when a critic is
    loaded."""
    rows = list(read_parts(settings.out))
    scored = {row["video"] for row in rows} & {video.video for video in videos}
    judges = {(row.get("critic"), row.get("views")) for row in rows}
    files = {video.video: settings.videos.parent / video.path for video in videos}
    left = [path for name, path in files.items() if name not in scored and path.is_file()]
    if settings.judge == "none" and left:
        assert settings.base is not None
        views, dtype = views_asked(settings), DTYPES[settings.dtype]
        looked = look(left, views, settings.task if views.crops_face else None)
        print(score_plan(looked, views, sizes_of(settings.base), dtype, len(left), settings.workers))
    print(
        f"dry run: {len(videos)} videos; {len(scored)} have a row in {settings.out}, by {len(judges)} critics and views"
    )
    if absent := [name for name, path in files.items() if not path.is_file()]:
        print(f"files that are not there: {some(absent)}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(ScoreSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
