"""What a stage refuses before it trains: pairs of another dimension, of a video with itself, of videos that do not go
together, and lip masks that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fantasy_core.errors import UserError, some
from fantasy_core.pair_rules import Pair
from train.shards import Cache


def check_pairs(pairs: Path, rows: Sequence[Pair], cache: Cache, dimension: str | None) -> None:
    """Raise UserError for rows that would teach something else without a word. dimension: what is trained (None: any);
    `full` pairs, which one's own folders give, may teach every dimension."""
    problems = []
    for row in rows:
        told = f"{row.chosen} over {row.rejected}"
        if dimension is not None and row.dimension not in (dimension, "full"):
            problems.append(f"{told} is a pair of {row.dimension}")
        if row.chosen == row.rejected:
            problems.append(f"{told} is one video")
        inputs = {cache.videos[name].get("input", row.input) for name in (row.chosen, row.rejected)}
        if inputs != {row.input}:
            problems.append(f"{told} is of input {row.input}, the videos are of {some(inputs)}")
        for name, sha in ((row.chosen, row.chosen_sha256), (row.rejected, row.rejected_sha256)):
            if sha and cache.videos[name].get("sha256", sha) != sha:
                problems.append(f"{name} is another file in {cache.folder}")
    if problems:
        trains = "" if dimension in (None, "full") else f" of {dimension}, or full ones,"
        raise UserError(
            f"{pairs} holds pairs that do not fit",
            got=f"{len(problems)} faults: {some(problems)}",
            expected=f"pairs{trains} of two videos of one input",
            do="give the pairs of train.pairs that belong to this dimension and cache",
        )


def check_masks(videos: Sequence[str], cache: Cache) -> None:
    """Raise UserError for lip masks of another size than their video's latents."""
    wrong = [name for name in videos if cache.shape(name, "lips") != cache.shape(name, "latents")[1:]]
    if wrong:
        mask, latents = (list(cache.shape(wrong[0], name)) for name in ("lips", "latents"))
        raise UserError(
            f"{cache.folder} holds lip masks that do not fit their videos",
            got=f"{some(wrong)}: mask {mask}, latents {latents}",
            expected="a mask of the latents' frames, height and width",
            do="make the cache again, with masks of the very videos",
        )
