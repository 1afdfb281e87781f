"""What people said of videos: votes, the fourth person's word, labels, their agreement. Pure; files only at the end.

A row of annotations.jsonl is one video in one dimension. Three people vote; three equal votes are final, and any other
case goes to a fourth, senior person whose vote decides alone (paper, 4.1): it may go against the majority, and how
often it does is worth knowing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fantasy_core.critic.statistics import fleiss_kappa
from fantasy_core.errors import UserError, some
from fantasy_core.pair_rules import DIMENSIONS
from train.run import read_rows

VOTES = 3


@dataclass(frozen=True)
class Vote:
    """A person's name and their answer, 1 Yes or 0 No."""

    by: str
    v: int


@dataclass(frozen=True)
class Annotation:
    """A row: three votes, and the label they make. `how` is unanimous, arbiter or needs_arbiter (label None)."""

    video: str
    sha256: str
    input: str
    source: str
    variant: Any
    dimension: str
    votes: list[Vote]
    arbiter: Vote | None
    label: int | None
    how: str
    split: str


def majority(votes: Sequence[Vote]) -> int:
    return int(sum(vote.v for vote in votes) * 2 > len(votes))


def unanimous(votes: Sequence[Vote]) -> bool:
    return len({vote.v for vote in votes}) == 1


def problem_of(votes: Sequence[Vote], arbiter: Vote | None = None) -> str | None:
    """What forbids a label: too few or too many votes, one that is no 0 or 1, a person who is there twice, an arbiter
    who is one of the three or who was not needed. None where all is well."""
    names = [vote.by for vote in votes]
    twice = [name for name, n in Counter(names).items() if n > 1]
    odd = [
        vote for vote in [*votes, *([arbiter] if arbiter else [])] if type(vote.v) is not int or vote.v not in (0, 1)
    ]
    if twice:
        return f"{some(twice)} voted twice"
    if len(votes) != VOTES:
        return f"{len(votes)} votes" + (f" and an arbiter, {arbiter.by}" if arbiter else "")
    if odd:
        return f"{odd[0].by} voted {odd[0].v!r}"
    if arbiter is not None and arbiter.by in names:
        return f"the arbiter {arbiter.by} is one of the three"
    if arbiter is not None and unanimous(votes):
        return f"the arbiter {arbiter.by} decided although the three agree"
    return None


def adjudicate(votes: Sequence[Vote], arbiter: Vote | None = None) -> tuple[int | None, str]:
    """(label, how) of three votes: all equal, that is it; otherwise the arbiter alone decides, whatever the majority.
    Raises UserError for what `problem_of` finds."""
    if problem := problem_of(votes, arbiter):
        raise bad_votes([problem])
    if unanimous(votes):
        return votes[0].v, "unanimous"
    return (None, "needs_arbiter") if arbiter is None else (arbiter.v, "arbiter")


def bad_votes(problems: Sequence[str]) -> UserError:
    return UserError(
        "these votes make no label",
        got=some(problems),
        expected="votes of 0 or 1 by three different people, and a fourth's only where the three disagree",
        do="correct the labels; nothing is guessed from them",
    )


# ---- agreement ----


def agreement(rows: Iterable[Annotation]) -> dict[str, dict[str, Any]]:
    """By dimension: rows, share that is unanimous, Fleiss' kappa, the arbiter's decisions and the share of them against
    the majority of the three, what still waits, labels by split and the share of Yes by source."""
    rows = list(rows)
    return {dimension: _agreement([row for row in rows if row.dimension == dimension]) for dimension in DIMENSIONS}


def _agreement(rows: Sequence[Annotation]) -> dict[str, Any]:
    decided = [row for row in rows if row.how == "arbiter" and row.arbiter]
    against = sum(row.label != majority(row.votes) for row in decided)
    labelled = [row for row in rows if row.label is not None]
    sources = sorted({row.source for row in labelled})
    return {
        "rows": len(rows),
        "unanimous": _share(sum(row.how == "unanimous" for row in rows), len(rows)),
        "kappa": fleiss_kappa([sum(vote.v for vote in row.votes) for row in rows], VOTES),
        "arbiter": len(decided),
        "reversed": against,
        "reversal_rate": _share(against, len(decided)),
        "needs_arbiter": sum(row.how == "needs_arbiter" for row in rows),
        "labels": dict(sorted(Counter(row.split for row in labelled).items())),
        "yes": _yes(labelled),
        "yes_by_source": {name: _yes([row for row in labelled if row.source == name]) for name in sources},
    }


def _yes(rows: Sequence[Annotation]) -> float | None:
    return _share(sum(row.label == 1 for row in rows), len(rows))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# ---- files (train.run.write_rows writes them) ----


@dataclass(frozen=True)
class _Line:
    """A row as JSON has it; what may be left out is what older or other files may lack."""

    video: str
    input: str
    dimension: str
    votes: Any
    label: Any
    arbiter: Any = None
    sha256: str = ""
    source: str = "unknown"
    variant: Any = None
    how: str = ""
    split: str = "train"


def read_annotations(path: Path) -> list[Annotation]:
    """The rows of annotations.jsonl. Raises UserError for votes that make no label or another one than the row says,
    for a dimension that there is not, a video that is there twice in one, and an input in both splits."""
    rows, problems = [], []
    for line in read_rows(path, _Line):
        try:
            rows.append(_checked(line))
        except (UserError, TypeError, KeyError, AttributeError) as error:
            got = error.got if isinstance(error, UserError) else f"no row of this file: {error!r}"
            problems.append(f"{line.video} {line.dimension}: {got}")
    problems += [f"{video} {dimension}: twice" for (video, dimension), n in _times(rows).items() if n > 1]
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.input, set()).add(row.split)
    problems += [
        f"input {name} is in {' and '.join(sorted(found))}" for name, found in splits.items() if len(found) > 1
    ]
    if problems:
        raise UserError(
            f"{path} cannot be used",
            got=some(problems),
            expected="rows as train.annotate writes them: three votes, and the label that they make",
            do="correct the lines, or make the file again",
        )
    return rows


def _checked(line: _Line) -> Annotation:
    votes = [Vote(**vote) for vote in line.votes]
    arbiter = Vote(**line.arbiter) if line.arbiter else None
    label, how = adjudicate(votes, arbiter)
    if line.dimension not in DIMENSIONS or line.split not in ("train", "test"):
        raise KeyError(f"dimension {line.dimension}, split {line.split}")
    if label != line.label or line.how not in ("", how):
        raise KeyError(f"label {line.label}, {line.how}, where the votes say {label}, {how}")
    told: Mapping[str, Any] = vars(line) | {"votes": votes, "arbiter": arbiter, "label": label, "how": how}
    return Annotation(**told)


def _times(rows: Sequence[Annotation]) -> Counter[tuple[str, str]]:
    return Counter((row.video, row.dimension) for row in rows)
