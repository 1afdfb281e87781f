"""Scored candidates become preference pairs, or two folders of one's own do.

    python -m train.pairs --videos videos.jsonl --scores scores.jsonl --out pairs
    python -m train.pairs --folders my_videos --out pairs        # my_videos/chosen and my_videos/rejected, equal names

Writes pairs_mn.jsonl, pairs_ls.jsonl, pairs_vq.jsonl and pairs_full.jsonl (chosen, rejected, input, dimension, margin,
split), and pairs.json: the rules, the yield, and the hashes of what they were made from. Two folders give
pairs_full.jsonl and the videos.jsonl that train.cache asks for. Only videos of one input are compared. `--full real`
sets real clips against what was generated from them (the paper), `mined` takes candidates that are better in all three
dimensions, `both` takes both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import UserError, some
from fantasy_core.pair_rules import (
    DIMENSIONS,
    Candidate,
    Pair,
    Rules,
    margin_for,
    pairs_by_dominance,
    pairs_by_score,
    pairs_with_real,
    yields,
)
from train.run import command, made_from, read_rows, setting, write_json, write_rows


@dataclass(frozen=True)
class PairSettings:
    out: Path = setting(help="folder for the pairs")
    videos: Path | None = setting(None, "videos.jsonl: video, input, source, split")
    scores: Path | None = setting(None, "scores.jsonl: video, z_mn, z_ls, z_vq")
    folders: Path | None = setting(None, "instead: a folder with chosen/ and rejected/")
    margin: float = setting(1.0, "least z of the chosen over the rejected")
    count_mn: int | None = setting(None, "instead of the margin: so many pairs of motion naturalness")
    count_ls: int | None = setting(None, "so many of lip sync")
    count_vq: int | None = setting(None, "so many of visual quality")
    signs: bool = setting(True, "the critic says Yes of the chosen and No of the rejected")
    cap: int = setting(0, "most pairs of a video in a dimension, 0 = any number", least=0)
    full: str = setting("real", "what the gate learns from", choices=("real", "mined", "both"))
    check_real: bool = setting(True, "leave out real clips that the critic does not prefer in all dimensions")
    own: str = setting("fantasytalking", "source of the model that will be trained, for the report")


@dataclass(frozen=True)
class Video:
    video: str
    input: str
    source: str = "unknown"
    split: str = "train"


@dataclass(frozen=True)
class Score:
    video: str
    z_mn: float | None = None
    z_ls: float | None = None
    z_vq: float | None = None


@dataclass(frozen=True)
class FolderVideo:
    """A row for train.cache; `path` is relative to the file."""

    video: str
    input: str
    path: str
    source: str = "own"
    split: str = "train"


def candidates(videos: Path, scores: Path) -> list[Candidate]:
    """Videos with their scores. Raises UserError for scores of videos that are not there, and for none at all."""
    known = {video.video: video for video in read_rows(videos, Video)}
    scored = {score.video: score for score in read_rows(scores, Score)}
    strangers = scored.keys() - known.keys()
    if strangers or not scored:
        raise UserError(
            f"{scores} does not belong to {videos}",
            got=f"scores of unknown videos: {some(strangers)}" if strangers else "no scores",
            expected="a score for videos of that file",
            do="score the videos of this file, or give the file that was scored",
        )
    found = []
    for name, score in scored.items():
        z = {d: getattr(score, f"z_{d}") for d in DIMENSIONS}
        told = known[name]
        z = {d: float(value) for d, value in z.items() if value is not None}
        found.append(Candidate(name, told.input, told.source, told.split, z))
    return found


def pair_up(found: list[Candidate], settings: PairSettings) -> tuple[dict[str, list[Pair]], dict]:
    """Pairs by dimension and `full`, and what the report says of the rules."""
    rules, pairs, margins = Rules(settings.margin, settings.signs, settings.cap), {}, {}
    for dimension in DIMENSIONS:
        count, own = getattr(settings, f"count_{dimension}"), rules
        if count is not None:
            own = dataclasses.replace(rules, margin=margin_for(found, dimension, count, rules))
        pairs[dimension], margins[dimension] = pairs_by_score(found, dimension, own), own.margin
        pairs[dimension] = pairs[dimension][:count]
    real, refused = pairs_with_real(found, rules if settings.check_real else None)
    mined = pairs_by_dominance([c for c in found if c.source != "real"], rules)
    pairs["full"] = {"real": real, "mined": mined, "both": [*real, *mined]}[settings.full]
    return pairs, {"margins": margins, "real_refused": refused, "real_kept": len(real), "mined": len(mined)}


def folder_pairs(folder: Path) -> list[Pair]:
    """chosen/NAME and rejected/NAME, for every NAME, as `full` pairs. Raises UserError for names without a partner."""
    names = {}
    for side in ("chosen", "rejected"):
        place = folder / side
        files = place.iterdir() if place.is_dir() else []
        names[side] = {file.name for file in files if file.is_file() and not file.name.startswith(".")}
    alone = names["chosen"] ^ names["rejected"]
    if alone or not names["chosen"]:
        raise UserError(
            f"{folder} does not hold pairs",
            got=f"without a partner: {some(alone)}" if alone else "no videos in chosen/ and rejected/",
            expected="chosen/ and rejected/ with files of equal names",
            do="give every chosen video a rejected one of the same name",
        )
    ordered = sorted(names["chosen"])
    return [Pair(f"chosen/{name}", f"rejected/{name}", Path(name).stem, "full", 0.0, "train") for name in ordered]


def folder_videos(folder: Path, pairs: list[Pair], out: Path) -> list[FolderVideo]:
    """Rows of a videos.jsonl in `out` for the videos of `folder_pairs`."""
    from_out = Path(os.path.relpath(folder.resolve(), out.resolve()))
    names = [(name, pair.input) for pair in pairs for name in (pair.chosen, pair.rejected)]
    return [FolderVideo(name, pair_input, (from_out / name).as_posix()) for name, pair_input in names]


def run(settings: PairSettings, dry_run: bool) -> None:
    if settings.folders is not None:
        pairs, facts, files = {"full": folder_pairs(settings.folders)}, {"folders": str(settings.folders)}, {}
        report = {"full": {"pairs": len(pairs["full"])}}
    elif settings.videos is None or settings.scores is None:
        raise UserError(
            "there is nothing to pair",
            got="no --videos and --scores, and no --folders",
            expected="scored videos, or two folders",
            do="give --videos and --scores, or --folders",
        )
    else:
        files = {"videos": settings.videos, "scores": settings.scores}
        found = candidates(**files)
        pairs, facts = pair_up(found, settings)
        report = {dimension: yields(rows, found, settings.own) for dimension, rows in pairs.items()}
    for dimension, told in report.items():
        print(f"{dimension}: {json.dumps(told, ensure_ascii=False)}")
    if dry_run:
        print(f"dry run: nothing was written to {settings.out}")
        return
    if settings.folders is not None:
        write_rows(settings.out / "videos.jsonl", folder_videos(settings.folders, pairs["full"], settings.out))
    for dimension, rows in pairs.items():
        write_rows(settings.out / f"pairs_{dimension}.jsonl", rows)
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()}
    write_json(
        settings.out / "pairs.json",
        {"settings": shown, "made_from": made_from(files), "rules": facts, "yield": report},
    )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(PairSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
