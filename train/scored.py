"""Videos and their scores, joined for train.pairs: which rows count, and which do not belong together.

Scores come in one file or in the part files of several processes. A row with `failed` has no score and is counted; a
video may be scored again with the same result, not with another, unless the row says that it `replaces` older ones.
Rows of another file than the list has (`sha256`, where both tell it) do not count. All scores must be of one critic
and its views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fantasy_core.critic.asked import LEAST_MASS
from fantasy_core.errors import UserError, some
from fantasy_core.pair_rules import DIMENSIONS, Candidates
from train.tables import cut_off, is_parquet, read_columns

if TYPE_CHECKING:
    import pyarrow as pa

VIDEO_COLUMNS = {"video": str, "input": str, "source": str, "split": str, "sha256": str}
JUDGE = ("critic", "views")
Z = tuple(f"z_{dimension}" for dimension in DIMENSIONS)
SCORE_COLUMNS = {"video": str, **dict.fromkeys(Z, float), **dict.fromkeys((*JUDGE, "failed", "sha256"), str)}
SCORE_COLUMNS |= {"replaces": float, "mass": float}


@dataclass(frozen=True, eq=False)
class Scored:
    """Candidates and the names behind their numbers; `facts` says what was read and what was left out."""

    candidates: Candidates
    videos: pa.Array  # [n] ids
    inputs: pa.Array  # names, by candidates.input
    split: pa.DictionaryArray  # [n]
    facts: dict[str, Any]


def read_scored(videos: Path, scores: Sequence[Path], critic: str | None = None, views: str | None = None) -> Scored:
    """The videos that have scores. `critic` and `views` (hashes or how they begin) choose among several. Raises
    UserError for files that do not belong together, and for a video or an input that is there twice."""
    facts: dict[str, Any] = {}
    known = read_columns(videos, VIDEO_COLUMNS, needed=("video", "input"))
    table = read_scores(scores, {"critic": critic, "views": views}, facts, known)
    facts |= {"videos": len(known), "videos_without_row": len(known) - len(table)}
    if facts["of_other_files"] and not len(table):
        raise UserError(
            f"{some(map(str, scores))} has no score of these files",
            got=f"{facts['of_other_files']} scores of files with other hashes (sha256)",
            expected=f"scores of the files in {videos}",
            do="score them: give train.score this list, it scores again what was made anew",
        )
    found = joined(known, table, f"{some(map(str, scores))}", videos)
    return encoded(found, facts)


# ---- scores ----


def read_scores(
    files: Sequence[Path],
    chosen: dict[str, str | None],
    facts: dict[str, Any],
    known: pa.Table | None = None,
    flags: str = "",
) -> pa.Table:
    """`video` and z of every video, once; `facts` takes in what was left out. `known`: `video` and `sha256` of the
    files that the scores must be of; `flags`: how those begin that choose a critic and views. Raises UserError."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.concat_tables([read_columns(f, SCORE_COLUMNS, needed=("video",), growing=True) for f in files])
    facts["score_rows"] = len(table)
    facts["cut_off_lines"] = sum(not is_parquet(file) and cut_off(file) > 0 for file in files)
    table = latest(of_files(of_one_judge(table, chosen, flags), known, facts))
    has_failed = pc.greater(pc.utf8_length(pc.fill_null(table["failed"], "")), 0)
    told = table.filter(pc.invert(has_failed))
    scored = told.select(["video", *Z])
    facts["failed_scores"] = len(table) - len(scored)
    facts["failed_share"] = (len(table) - len(scored)) / max(len(table), 1)
    facts["low_mass"] = pc.sum(pc.less(told["mass"], LEAST_MASS)).as_py() or 0
    facts["low_mass_share"] = facts["low_mass"] / max(len(told), 1)
    facts["without"] = {dimension: scored[f"z_{dimension}"].null_count for dimension in DIMENSIONS}
    once = each_once(scored)
    facts["scored_again"] = len(scored) - len(once)
    return once


def of_one_judge(table: pa.Table, chosen: dict[str, str | None], flags: str) -> pa.Table:
    """The rows of the critic and views that are asked for. Raises UserError for those of several."""
    import pyarrow.compute as pc

    there = table.group_by(list(JUDGE)).aggregate([([], "count_all")]).to_pylist()
    for name, begin in chosen.items():
        if begin is not None:
            table = table.filter(pc.fill_null(pc.starts_with(table[name], begin), False))
    left = table.group_by(list(JUDGE)).aggregate([([], "count_all")]).num_rows if any(chosen.values()) else len(there)
    if left == 1 or not there:
        return table
    told = [f"{row['count_all']} of critic {row['critic'] or 'none'}, views {row['views'] or 'none'}" for row in there]
    raise UserError(
        "the scores are of several critics or views" if left else "no score is of the critic and views asked for",
        got=some(told),
        expected="one critic that saw one kind of views: z of two cannot be compared",
        do=f"choose by --{flags}critic HASH (and --{flags}views HASH), or score all videos by one",
    )


def of_files(table: pa.Table, known: pa.Table | None, facts: dict[str, Any]) -> pa.Table:
    """The rows that are not of another file than the one that is known; who does not tell the hash is believed."""
    import pyarrow.compute as pc

    facts["of_other_files"] = 0
    if known is None or known["sha256"].null_count == len(known) or table["sha256"].null_count == len(table):
        return table.drop_columns("sha256")
    listed = known["sha256"].take(pc.index_in(table["video"], known["video"]))
    told = pc.and_(pc.not_equal(listed, ""), pc.not_equal(table["sha256"], ""))
    other = pc.fill_null(pc.and_(told, pc.not_equal(listed, table["sha256"])), False)
    facts["of_other_files"] = pc.sum(other).as_py() or 0
    return table.filter(pc.invert(other)).drop_columns("sha256")


def latest(table: pa.Table) -> pa.Table:
    """Without the rows that another one replaces."""
    import pyarrow.compute as pc

    if table["replaces"].null_count < len(table):
        replaces = pc.fill_null(table["replaces"], 0.0)
        most = table.select(["video"]).append_column("most", replaces).group_by("video").aggregate([("most", "max")])
        table = table.filter(pc.equal(replaces, most["most_max"].take(pc.index_in(table["video"], most["video"]))))
    return table.drop_columns("replaces")


def each_once(table: pa.Table) -> pa.Table:
    """Rows without repetitions. Raises UserError for a video that has different scores."""
    import pyarrow.compute as pc

    if pc.count_distinct(table["video"]).as_py() == len(table):
        return table
    once = table.group_by(table.column_names).aggregate([])
    counts = once.group_by("video").aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))["video"].to_pylist()
    if not twice:
        return once
    raise UserError(
        "videos have been scored twice with different results",
        got=some(twice),
        expected="one score of a video by one critic",
        do="keep one row of each: the same critic gives the same score, so one of the files is of something else",
    )


# ---- the two together ----


def joined(known: pa.Table, scores: pa.Table, where: str, videos: Path) -> pa.Table:
    """Scored videos with what is known of them, in the order of their ids. Raises UserError for scores of videos that
    are not there, for none at all, and for a video that is there twice."""
    import pyarrow.compute as pc

    places = pc.index_in(scores["video"], known["video"])
    strangers = scores["video"].filter(pc.is_null(places))
    if len(strangers) or not len(scores):
        raise UserError(
            f"{where} does not belong to {videos}",
            got=f"scores of unknown videos: {some(strangers.to_pylist())}" if len(strangers) else "no scores",
            expected="a score for videos of that file",
            do="score the videos of this file, or give the file that was scored",
        )
    if pc.count_distinct(known["video"]).as_py() < len(known):
        counts = known.group_by("video").aggregate([([], "count_all")])
        refuse(counts.filter(pc.greater(counts["count_all"], 1))["video"].to_pylist(), [])
    found = known.select(["input", "source", "split"]).take(places)
    for name in scores.column_names:
        found = found.append_column(name, scores[name])
    return found.take(pc.sort_indices(scores["video"]))


def encoded(found: pa.Table, facts: dict[str, Any]) -> Scored:
    """Names as numbers. Raises UserError for an input in two splits."""
    import pyarrow.compute as pc

    names = {"input": found["input"], "source": pc.fill_null(found["source"], "unknown")}
    names["split"] = pc.fill_null(found["split"], "train")
    coded = {name: column.combine_chunks().dictionary_encode() for name, column in names.items()}
    numbers = {name: column.indices.to_numpy() for name, column in coded.items()}
    inputs = coded["input"].dictionary
    splits = np.full(len(inputs), -1)
    splits[numbers["input"]] = numbers["split"]
    torn = np.unique(numbers["input"][splits[numbers["input"]] != numbers["split"]])
    if len(torn):
        refuse([], inputs.take(torn).to_pylist())
    z = np.stack([found[name].to_numpy() for name in Z], axis=1)
    sources = coded["source"].dictionary.to_pylist()
    candidates = Candidates(numbers["input"], numbers["source"], sources, z)
    return Scored(candidates, found["video"].combine_chunks(), inputs, coded["split"], facts)


def refuse(twice: list[str], torn: list[str]) -> None:
    raise UserError(
        "these candidates cannot be paired",
        got=f"videos twice: {some(twice) or 'none'}; inputs in two splits: {some(torn) or 'none'}",
        expected="every video once, and all videos of an input in one split",
        do="give each video an id of its own, and split by input",
    )
