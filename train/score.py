"""Talking-Critic's scores of many videos: one row a video, resumable, on one process or one for each GPU.

    python -m train.score --videos videos.jsonl --base models/Qwen2.5-Omni-7B --critic runs/critic/adapter \\
        --task face_landmarker.task --device cuda --out scores
    torchrun --nproc_per_node 8 -m train.score ...                                  # every 8th video each

Each process appends to scores/part-RANK.jsonl: video, z_mn, z_ls, z_vq (logit of Yes less logit of No, the mean over
windows of at most five seconds), least_mn ..., mass (probability of Yes and No together), windows, warnings, and the
hashes `critic` and `views`. Nothing is scored twice by the same critic in the same views, however often the command is
given and however many processes there are. A video that cannot be read is a row with `failed`. Before the first score a
canary: lip sync must react to silence, to late sound, and to the adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fantasy_core.critic.asked import read_views
from fantasy_core.critic.critic import Critic, Score
from fantasy_core.errors import UserError
from fantasy_core.media import check_file
from fantasy_core.pair_rules import DIMENSIONS
from fantasy_core.progress import Progress
from train.distributed import join
from train.journal import part_of, read_parts
from train.run import command, made_from, read_rows, setting, write_json
from train.scorers import CriticScorer, Scorer, Video
from train.workers import each

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class ScoreSettings:
    videos: Path = setting(help="videos.jsonl: video, path (relative to it), input")
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

        critic = VllmCritic.load(settings.base, settings.views)
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
    if settings.task is not None:
        check_file(settings.task, "face landmarker")
    if settings.views is not None:
        read_views(settings.views)


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
    """Whether one of these clips was a canary, which has been told. Raises UserError when it did not react."""
    for (_, video), clip in found:
        told = None if isinstance(clip, UserError) else scorer.canary(clip)
        if told:
            print(f"canary {video.video}: " + ", ".join(f"z {value:+.3f} ({name})" for name, value in told.items()))
            return True
    return False


def score_all(settings: ScoreSettings, jobs: Sequence[tuple[Path, Video]], scorer: Scorer) -> Iterator[dict[str, Any]]:
    """A row for every video, as soon as it is known."""
    sung = not settings.canary
    read = each(scorer.read, jobs, settings.workers, prepare=scorer.prepare, given=scorer.given)
    while pool := list(islice(read, settings.pool)):
        sung = sung or check_canary(scorer, pool)
        for (_, video), error in pool:
            if isinstance(error, UserError):
                yield failed_row(video.video, error, scorer)
        good = [(video.video, clip) for (_, video), clip in pool if not isinstance(clip, UserError)]
        for number, score in scorer.scores([clip for _, clip in good]):
            yield row_of(good[number][0], score, scorer)
    if jobs and not sung and settings.judge == "none":
        print(
            "warning: no canary: none of these videos has half a second of sound. Whether the critic hears is unknown"
        )


def run(settings: ScoreSettings, dry_run: bool) -> None:
    videos = list(read_rows(settings.videos, Video))
    if dry_run:
        if settings.judge == "none":
            check_settings(settings)
        scored = len({row["video"] for row in read_parts(settings.out)} & {video.video for video in videos})
        absent = sum(not (settings.videos.parent / video.path).is_file() for video in videos)
        print(f"dry run: {len(videos)} videos, {scored} with a score in {settings.out}, {absent} files are not there")
        return
    world = join(settings.device)
    scorer = scorer_of(settings, world.device)
    finished = done(settings, scorer)
    own = [video for video in videos[world.rank :: world.size] if video.video not in finished]
    jobs = [(settings.videos.parent / video.path, video) for video in own]
    print(f"{len(videos)} videos, {len(finished)} scored already, {len(jobs)} of them for this process")
    failed = 0
    with part_of(settings.out, world.rank) as part, Progress("score", len(jobs), shown=world.is_main) as progress:
        for row in score_all(settings, jobs, scorer):
            part.append(row)
            failed += "failed" in row
            progress.step(row["video"])
    if world.is_main:
        named = {name: str(getattr(settings, name)) for name in ("base", "critic", "judge", "engine")}
        told = {"critic": scorer.critic, "views": scorer.views, "given": named}
        write_json(settings.out / "scorer.json", told | {"made_from": made_from({"videos": settings.videos})})
    print(f"{len(jobs)} scored, {failed} of them failed; rows are in {settings.out}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(ScoreSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
