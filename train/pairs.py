"""Scored candidates become preference pairs, or two folders of one's own do.

    python -m train.pairs --videos videos.jsonl --scores scores.jsonl --out pairs
    python -m train.pairs --videos videos.parquet --scores scores/ --format parquet --out pairs     # millions of videos
    python -m train.pairs --folders my_videos --out pairs        # my_videos/chosen and my_videos/rejected, equal names

Writes pairs_mn.jsonl, pairs_ls.jsonl, pairs_vq.jsonl and pairs_full.jsonl (chosen, rejected, input, dimension,
margin, split), and pairs.json: the rules, the yield, and the hashes of what they were made from. Two folders give
pairs_full.jsonl, some of whose pairs are held out, and the videos.jsonl that train.cache asks for. Only videos of one
input are compared. `--full real` sets real clips against what was generated from them (the paper), `mined` takes
pairs of candidates, `both` takes both; in these the chosen video is better by the margin in all three dimensions,
whatever its signs (`--check-real false` takes all pairs with real clips). `mean` compares candidates by the mean of
the three scores. `--scores` takes several files, or folders of part files.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fantasy_core.errors import UserError, some
from fantasy_core.manifest import sha256
from fantasy_core.media import check_file
from fantasy_core.pair_report import style_warning, yields
from fantasy_core.pair_rules import (
    DIMENSIONS,
    SIDES,
    Pair,
    Pairs,
    Rules,
    capped,
    joined,
    pairs_by_count,
    pairs_by_dominance,
    pairs_by_mean,
    pairs_by_score,
    pairs_with_real,
)
from fantasy_core.progress import Progress
from train.footage import SUFFIXES
from train.run import as_json, command, made_from, setting, write_json
from train.scored import Scored, read_scored
from train.splits import held_out
from train.tables import FORMATS, part_files, write_columns, write_rows_of

FEW = 20  # pairs of one's own, of which none is held out


@dataclass(frozen=True)
class PairSettings:
    out: Path = setting(help="folder for the pairs")
    videos: Path | None = setting(None, "videos.jsonl or .parquet: video, input, source, split")
    scores: tuple[str, ...] = setting((), "files or folders of video, z_mn, z_ls, z_vq, critic, views, failed")
    critic: str | None = setting(None, "hash, or its beginning, of the critic whose scores count")
    views: str | None = setting(None, "hash, or its beginning, of what the critic was shown")
    folders: Path | None = setting(None, "instead: a folder with chosen/ and rejected/")
    validation: float = setting(
        0.05, "share of --folders that is held out, by name (of 20 pairs and more)", least=0, most=0.9
    )
    margin: float = setting(
        1.0, "least z of the chosen over the rejected; of full pairs in all three dimensions", least=0.0
    )
    count_mn: int | None = setting(None, "instead of the margin: so many pairs of motion naturalness", least=1)
    count_ls: int | None = setting(None, "so many of lip sync", least=1)
    count_vq: int | None = setting(None, "so many of visual quality", least=1)
    signs: bool = setting(
        True, "the critic says Yes of the chosen and No of the rejected; not asked of full pairs, but by mean"
    )
    cap: int = setting(0, "most pairs of a video in a dimension, 0 = any number", least=0)
    full: str = setting("real", "what the gate learns from", choices=("real", "mined", "both", "mean"))
    check_real: bool = setting(True, "leave out real clips that are not better by the margin in all dimensions")
    own: str = setting("fantasytalking", "source of the model that will be trained, for the report")
    format: str = setting("jsonl", "of what is written: lines for people, parquet for scale", choices=FORMATS)


@dataclass(frozen=True)
class Score:
    """A row of scores."""

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
    sha256: str = ""


def pair_up(scored: Scored, settings: PairSettings) -> tuple[dict[str, Pairs], dict]:
    """Pairs by dimension and `full`, and what the report says of the rules."""
    found, rules = scored.candidates, Rules(settings.margin, settings.signs, settings.cap)
    pairs, margins = {}, {}
    for dimension in DIMENSIONS:
        count = getattr(settings, f"count_{dimension}")
        if count is None:
            pairs[dimension], margins[dimension] = pairs_by_score(found, dimension, rules), rules.margin
        else:
            pairs[dimension] = pairs_by_count(found, dimension, count, rules)
            margins[dimension] = float(pairs[dimension].margin[-1])
    free = replace(rules, cap=0)  # full pairs of both kinds are capped together
    real, refused, compared = pairs_with_real(found, free if settings.check_real else None)
    made, kinds = found.generated(), ("real", "mined") if settings.full == "both" else (settings.full,)
    full = {"real": lambda: real, "mined": lambda: pairs_by_dominance(made, free)}
    full["mean"] = lambda: pairs_by_mean(made, free)
    every = joined([full[kind]() for kind in kinds])
    pairs["full"] = capped(every, rules.cap) if rules.cap else every
    number, with_real = sum(refused.values()), int(found.real[pairs["full"].chosen].sum())
    kept = with_real if "real" in kinds else len(real)
    facts = {"margins": margins, "real_compared": compared, "real_kept": kept, "real_refused": number}
    facts |= {"real_refused_share": number / max(compared, 1), "real_refused_by": refused}
    return pairs, facts | ({"mined": len(pairs["full"]) - with_real} if "mined" in kinds else {})


def told(pairs: dict[str, Pairs], scored: Scored, settings: PairSettings) -> dict[str, dict]:
    """The yield by dimension."""
    report, splits = {}, scored.split.indices.to_numpy()
    names = scored.split.dictionary.to_pylist()
    for dimension, found in pairs.items():
        report[dimension] = yields(found, scored.candidates, dimension, settings.own)
        counts = Counter(splits[found.chosen].tolist())
        report[dimension]["splits"] = dict(sorted((names[number], count) for number, count in counts.items()))
    return report


def warnings_of(report: dict[str, dict], scored: Scored, settings: PairSettings) -> list[str]:
    """What to look at before training: no pairs, scores that are no answers, and one source that wins nearly all,
    but that real clips win against what was made from them is no surprise."""
    looked_at = [*DIMENSIONS, *(["full"] if settings.full in ("mined", "mean") else [])]
    found = [style_warning(report[dimension], dimension, scored.candidates.sources) for dimension in looked_at]
    empty = [f"{dimension}: no pairs" for dimension, told in report.items() if not told["pairs"]]
    if (share := scored.facts["low_mass_share"]) > 0.5:
        found.append(f"{100 * share:.0f} % of the scores are no answers: Yes and No have little of the probability")
    return [*empty, *(warning for warning in found if warning)]


def columns(pairs: Pairs, dimension: str, scored: Scored) -> dict:
    """The columns of a file of pairs."""
    import pyarrow as pa

    return {
        "chosen": scored.videos.take(pa.array(pairs.chosen)),
        "rejected": scored.videos.take(pa.array(pairs.rejected)),
        "input": scored.inputs.take(pa.array(scored.candidates.input[pairs.chosen])),
        "dimension": pa.repeat(dimension, len(pairs)),
        "margin": pairs.margin,
        "split": scored.split.take(pa.array(pairs.chosen)).dictionary_decode(),
    }


def folder_pairs(folder: Path, share: float) -> list[Pair]:
    """chosen/NAME and rejected/NAME, for every video NAME, as `full` pairs, with the files' hashes: folders of other
    projects have the same names. A `share` is of split validation. Raises UserError for names without a partner."""
    names = {}
    for side in SIDES:
        place = folder / side
        files = place.iterdir() if place.is_dir() else []
        names[side] = {file.name for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")}
    alone = names["chosen"] ^ names["rejected"]
    if alone or not names["chosen"]:
        raise UserError(
            f"{folder} does not hold pairs",
            got=f"without a partner: {some(alone)}" if alone else "no videos in chosen/ and rejected/",
            expected="chosen/ and rejected/ with videos of equal names",
            do="give every chosen video a rejected one of the same name",
        )
    found, share = [], share if len(names["chosen"]) >= FEW else 0.0
    with Progress("hashes", 2 * len(names["chosen"])) as progress:
        for name in sorted(names["chosen"]):
            hashes = []
            for side in SIDES:
                hashes.append(sha256(check_file(folder / side / name, "video")))
                progress.step(f"{side}/{name}")
            split = "validation" if held_out(Path(name).stem, share) else "train"
            found.append(Pair(f"chosen/{name}", f"rejected/{name}", Path(name).stem, "full", 0.0, split, *hashes))
    return found


def folder_videos(folder: Path, pairs: list[Pair], out: Path) -> list[FolderVideo]:
    """Rows of a videos.jsonl in `out` for the videos of `folder_pairs`."""
    from_out, rows = Path(os.path.relpath(folder.resolve(), out.resolve())), []
    for pair in pairs:
        for name, sha in ((pair.chosen, pair.chosen_sha256), (pair.rejected, pair.rejected_sha256)):
            rows.append(FolderVideo(name, pair.input, (from_out / name).as_posix(), split=pair.split, sha256=sha))
    return rows


def from_folders(settings: PairSettings, folder: Path, dry_run: bool) -> None:
    pairs = folder_pairs(folder, settings.validation)
    report = {"full": {"pairs": len(pairs), "splits": dict(Counter(pair.split for pair in pairs))}}
    show(report, [])
    if dry_run:
        return
    write_rows_of(settings.out / f"videos.{settings.format}", folder_videos(folder, pairs, settings.out))
    write_rows_of(settings.out / f"pairs_full.{settings.format}", pairs)
    write_report(settings, {}, {"folders": str(folder)}, report, [])


def from_scores(settings: PairSettings, videos: Path, dry_run: bool) -> None:
    parts = part_files([Path(given) for given in settings.scores])
    scored = read_scored(videos, parts, settings.critic, settings.views)
    pairs, facts = pair_up(scored, settings)
    report = told(pairs, scored, settings)
    warnings = warnings_of(report, scored, settings)
    real = {name.removeprefix("real_"): fact for name, fact in facts.items() if name.startswith("real_")}
    show(report | {"real": real, "read": scored.facts}, warnings)
    check_any(pairs, scored)
    if dry_run:
        return
    names = ["scores"] if len(parts) == 1 else [f"scores {part}" for part in parts]
    origin = made_from({"videos": videos, **dict(zip(names, parts, strict=True))})
    for dimension, found in pairs.items():
        file = settings.out / f"pairs_{dimension}.{settings.format}"
        write_columns(file, columns(found, dimension, scored), {"made_from": json.dumps(origin)})
    write_report(settings, origin, facts | {"read": scored.facts}, report, warnings)


def check_any(pairs: dict[str, Pairs], scored: Scored) -> None:
    """Raises UserError where there is no pair of any kind."""
    if any(len(found) for found in pairs.values()):
        return
    inputs, counts = np.unique(scored.candidates.input, return_counts=True)
    raise UserError(
        "no two of these videos make a pair",
        got=f"{len(scored.videos)} scored videos of {len(inputs)} inputs, {int((counts > 1).sum())} with several",
        expected="inputs with several videos that the critic tells apart",
        do="score more videos of each input, lower --margin, or take pairs of one sign by --signs false",
    )


def show(report: dict[str, dict], warnings: list[str]) -> None:
    for name, content in report.items():
        print(f"{name}: {json.dumps(content, ensure_ascii=False)}")
    for warning in warnings:
        print(f"warning: {warning}")


def write_report(settings: PairSettings, origin: dict, facts: dict, report: dict, warnings: list[str]) -> None:
    content = {
        "settings": as_json(vars(settings)),
        "made_from": origin,
        "rules": facts,
        "yield": report,
        "warnings": warnings,
    }
    write_json(settings.out / "pairs.json", content)


def run(settings: PairSettings, dry_run: bool) -> None:
    if settings.folders is not None:
        from_folders(settings, settings.folders, dry_run)
    elif settings.videos is not None and settings.scores:
        from_scores(settings, settings.videos, dry_run)
    else:
        raise UserError(
            "there is nothing to pair",
            got="no --videos and --scores, and no --folders",
            expected="scored videos, or two folders",
            do="give --videos and --scores, or --folders",
        )
    if dry_run:
        print(f"dry run: nothing was written to {settings.out}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(PairSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
