"""Talking-Critic's scores of many videos: one row a video, resumable, on one process or one for each GPU.

    python -m train.score --videos videos.jsonl --base models/Qwen2.5-Omni-7B --critic runs/critic/adapter \\
        --task face_landmarker.task --device cuda --out scores
    torchrun --nproc_per_node 8 -m train.score ...                                  # every 8th video each

Each process appends to scores/part-RANK.jsonl: video, z_mn, z_ls, z_vq (logit of Yes less logit of No, the mean over
windows of at most five seconds), least_mn ..., mass (probability of Yes and No together), windows, warnings, and the
hashes `critic` and `views`. Nothing is scored twice by the same critic in the same views, however often the command is
given and however many processes there are. A video that cannot be read, or whose score is no number (fp16 may
overflow), is a row with `failed`. Before the first score a canary: lip sync must react to silence, to late sound, and
to the adapter, on one of three clips.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fantasy_core.critic.asked import read_views
from fantasy_core.critic.critic import ADAPTER, Critic, Score
from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file
from fantasy_core.pair_rules import DIMENSIONS
from fantasy_core.progress import Progress
from train.distributed import join
from train.journal import part_of, read_parts
from train.run import command, made_from, setting, write_json
from train.scorers import CriticScorer, Scorer, Video, check_task, no_number, read_videos
from train.workers import each

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FEW = 3  # videos that fail alike, before the critic is at fault and not they


@dataclass(frozen=True)
class ScoreSettings:
    videos: Path = setting(help="videos.jsonl or .parquet: video, path (relative to it), input")
    out: Path = setting(help="folder of the part files")
    base: Path | None = setting(None, "folder of Qwen2.5-Omni")
    critic: Path | None = setting(None, "adapter folder of train.critic; without one the base is asked")
    judge: str = setting("none", "instead of a critic: the exact judge of this world", choices=("none", "miniature"))
    views: str | None = setting(None, "separate or shared (the adapter's own, else separate)")
    task: Path | None = setting(None, "face_landmarker.task, for the view of the face")
    face: str = setting("found", "found, or whole: views of the face show all of the frame", choices=("found", "whole"))
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

        critic = VllmCritic.load(settings.base, settings.views or "separate")
    else:
        told = {"views": settings.views, "dtype": DTYPES[settings.dtype], "device": device}
        critic = Critic.load(settings.base, settings.critic, **told)
    task = settings.task if settings.face == "found" and critic.views.crops_face else None
    if critic.views.crops_face and task is None and settings.face == "found":
        raise UserError(
            "the view of the face needs faces to be found",
            got="no --task",
            expected="mediapipe's face_landmarker.task",
            do="give --task, or --face whole for portraits that fill the frame, or --views shared",
        )
    return CriticScorer(critic, settings.batch, task)


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
    may_crop = settings.views is None or read_views(settings.views).crops_face  # None: an adapter's own may
    if may_crop and settings.face == "found":
        check_task(settings.task)


def row_of(video: str, score: Score, scorer: Scorer) -> dict[str, Any]:
    z = {f"z_{d}": score.z[d] for d in DIMENSIONS} | {f"least_{d}": score.least[d] for d in DIMENSIONS}
    told = {"mass": score.mass, "windows": score.windows, "warnings": score.warnings}
    return {"video": video, **z, **told, "critic": scorer.critic, "views": scorer.views}


def failed_row(video: str, error: UserError, scorer: Scorer) -> dict[str, Any]:
    z = {f"z_{d}": None for d in DIMENSIONS}
    return {"video": video, **z, "critic": scorer.critic, "views": scorer.views, "failed": f"{error.what}: {error.got}"}


def done(settings: ScoreSettings, scorer: Scorer) -> set[str]:
    """Videos that this critic has scored in these views already, by whichever process."""
    rows = read_parts(settings.out)
    own = (row for row in rows if (row.get("critic"), row.get("views")) == (scorer.critic, scorer.views))
    return {row["video"] for row in own if not (settings.again and row.get("failed"))}


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
    settings: ScoreSettings, jobs: Sequence[tuple[Path, Video]], scorer: Scorer
) -> Iterator[tuple[str, Score | UserError]]:
    """(video, its score or why it has none), as soon as it is known."""
    sung = not settings.canary
    read = each(scorer.read, jobs, settings.workers, prepare=scorer.prepare, given=scorer.given)
    while pool := list(islice(read, settings.pool)):
        sung = sung or check_canary(scorer, pool)
        yield from ((video.video, error) for (_, video), error in pool if isinstance(error, UserError))
        good = [(video.video, clip) for (_, video), clip in pool if not isinstance(clip, UserError)]
        for number, score in scorer.scores([clip for _, clip in good]):
            yield good[number][0], score
    if jobs and not sung and settings.judge == "none":
        print(
            "warning: no canary: no video that could be read has half a second of sound. Whether the critic hears is "
            "unknown"
        )


def rows_of(told: Iterable[tuple[str, Score | UserError]], scorer: Scorer) -> Iterator[dict[str, Any]]:
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


def run(settings: ScoreSettings, dry_run: bool) -> None:
    videos, world = read_videos(settings.videos), join(settings.device)
    if dry_run:
        if settings.judge == "none":
            check_settings(settings)
        tell_plan(settings, videos)
        return
    scorer = scorer_of(settings, world.device)
    finished = done(settings, scorer)
    own = [video for video in videos[world.rank :: world.size] if video.video not in finished]
    jobs = [(settings.videos.parent / video.path, video) for video in own]
    print(f"{len(videos)} videos, {len(finished)} scored already, {len(jobs)} of them for this process")
    failed = 0
    with part_of(settings.out, world.rank) as part, Progress("score", len(jobs), shown=world.is_main) as progress:
        for row in rows_of(score_all(settings, jobs, scorer), scorer):
            part.append(row)
            failed += "failed" in row
            progress.step(row["video"])
    if world.is_main:
        named = {name: str(getattr(settings, name)) for name in ("base", "critic", "judge", "engine")}
        told = {"critic": scorer.critic, "views": scorer.views, "given": named}
        write_json(settings.out / "scorer.json", told | {"made_from": made_from({"videos": settings.videos})})
    print(f"{len(jobs)} scored, {failed} of them failed; rows are in {settings.out}")
    print(f"critic {scorer.critic}, views {scorer.views}")


def tell_plan(settings: ScoreSettings, videos: Sequence[Video]) -> None:
    """Print what there is to score. Whose the rows are that are there is known when a critic is loaded."""
    scored = {row["video"] for row in read_parts(settings.out)} & {video.video for video in videos}
    absent = [video.video for video in videos if not (settings.videos.parent / video.path).is_file()]
    judges = {(row.get("critic"), row.get("views")) for row in read_parts(settings.out)}
    print(
        f"dry run: {len(videos)} videos; {len(scored)} have a row in {settings.out}, by {len(judges)} critics and views"
    )
    if absent:
        print(f"files that are not there: {some(absent)}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(ScoreSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
