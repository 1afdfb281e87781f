"""As many Yes as No within every (dimension, source), so that a critic does not learn to tell real from generated.

Nearly all real clips are good and many generated ones are not: without the source in the key, "is it real" would be the
better part of the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Labelled(Protocol):
    """What `balance` reads of a row; `label` is 0 or 1."""

    @property
    def video(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def dimension(self) -> str: ...
    @property
    def label(self) -> int | None: ...


Row = TypeVar("Row", bound=Labelled)


@dataclass(frozen=True)
class Dropped:
    """A cell that cannot be balanced: its `count` rows all have the same `label`."""

    dimension: str
    source: str
    label: int
    count: int

    def __str__(self) -> str:
        return f"{self.dimension} of {self.source} ({self.count} rows, all {'Yes' if self.label else 'No'})"


def balance(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Dropped]]:
    """The rows that are kept, in their order, and the cells that are left out for want of one of the labels.

    Of the larger side of a cell those are kept whose hashes of seed, dimension and video are smallest: the draw of one
    dimension says nothing of another's, and neither the order of the rows nor rows of other cells change it.
    """
    cells: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in rows:
        sides = cells.setdefault((row.dimension, row.source), {0: [], 1: []})
        sides[_label(row)].append(row)
    kept, dropped = set(), []
    for (dimension, source), sides in sorted(cells.items()):
        size = min(map(len, sides.values()))
        if not size:
            label = int(bool(sides[1]))
            dropped.append(Dropped(dimension, source, label, len(sides[label])))
        for side in sides.values():
            kept.update(map(id, sorted(side, key=lambda row: _place(row, seed))[:size]))
    return [row for row in rows if id(row) in kept], dropped


def _label(row: Labelled) -> int:
    if row.label not in (0, 1):
        raise ValueError(f"{row.video} has no label in {row.dimension}: leave such rows out first")
    return row.label


def _place(row: Labelled, seed: int) -> bytes:
    return hashlib.sha256(f"balance {seed} {row.dimension} {row.video}".encode()).digest()
