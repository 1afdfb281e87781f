"""Votes from files: Label Studio's JSON export, or a CSV `video,dimension,a1,a2,a3,arbiter` with 0, 1 or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fantasy_core.pair_rules import DIMENSIONS
from train.annotations import Vote
from train.csv_table import bad_table, read_table
from train.label_studio import Answer, read_export

PEOPLE = ("a1", "a2", "a3")
WORDS = {"Yes": 1, "No": 0}
Key = tuple[str, str]  # video, dimension


@dataclass
class Votes:
    """Votes by (video, dimension), those of arbiters apart; `hashes` of the files that people saw, where they are
    told; how many annotations were skipped."""

    votes: dict[Key, list[Vote]] = field(default_factory=dict)
    arbiters: dict[Key, list[Vote]] = field(default_factory=dict)
    hashes: dict[str, set[str]] = field(default_factory=dict)
    skipped: int = 0

    @property
    def videos(self) -> set[str]:
        return {video for video, _ in [*self.votes, *self.arbiters]}

    def add_arbiter(self, path: Path) -> None:
        """The export of the arbiter's project."""
        export = read_export(path)
        self._take(export.answers, self.arbiters, path)
        self.skipped += export.skipped

    def _take(self, answers: list[Answer], into: dict[Key, list[Vote]], path: Path) -> None:
        problems = [
            f"{a.video} {a.name}: {a.value!r}" for a in answers if a.name not in DIMENSIONS or not _word(a.value)
        ]
        if problems:
            raise bad_table(path, problems, "answers Yes or No to the questions mn, ls and vq")
        for answer in answers:
            into.setdefault((answer.video, answer.name), []).append(Vote(answer.by, WORDS[answer.value]))
            if answer.sha256:
                self.hashes.setdefault(answer.video, set()).add(answer.sha256)


def _word(value: object) -> bool:
    return isinstance(value, str) and value in WORDS


def read_votes(path: Path) -> Votes:
    """A CSV (by its name) or an export. Raises UserError."""
    votes = Votes()
    if path.suffix.lower() == ".csv":
        _read_csv(path, votes)
        return votes
    export = read_export(path)
    votes._take(export.answers, votes.votes, path)
    votes.skipped = export.skipped
    return votes


def _read_csv(path: Path, votes: Votes) -> None:
    problems = []
    for number, row in read_table(path, ("video", "dimension", *PEOPLE), {"dim": "dimension"}):
        key = row["video"], row["dimension"]
        cells = {name: row.get(name, "") for name in (*PEOPLE, "arbiter")}
        problems += [f"line {number}: {name} is {cell!r}" for name, cell in cells.items() if cell not in ("", "0", "1")]
        if row["dimension"] not in DIMENSIONS:
            problems.append(f"line {number}: dimension {row['dimension']!r}")
        if key in votes.votes:
            problems.append(f"line {number}: {' '.join(key)} a second time")
        told = {name: Vote(name, int(cell)) for name, cell in cells.items() if cell in ("0", "1")}
        votes.votes[key] = [told[name] for name in PEOPLE if name in told]
        if "arbiter" in told:
            votes.arbiters[key] = [told["arbiter"]]
    if problems:
        raise bad_table(path, problems, "each video once in mn, ls and vq; votes of 0, 1 or nothing")
