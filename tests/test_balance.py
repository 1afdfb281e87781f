"""Balanced labels: as many Yes as No in every cell, the same rows whatever their order and company."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.balance import balance


@dataclass(frozen=True)
class Row:
    video: str
    dimension: str
    source: str
    label: int | None


CELLS = st.tuples(st.sampled_from(("mn", "ls")), st.sampled_from(("real", "multitalk")), st.integers(0, 1))
ROWS = st.lists(CELLS, max_size=40).map(lambda cells: [Row(f"v{i}", *cell) for i, cell in enumerate(cells)])


def test_the_larger_side_is_sampled_down():
    """real: 9 Yes, 1 No; multitalk: 2 Yes, 8 No. Kept 1 + 1 and 2 + 2; a source without No is left out and told."""
    rows = [
        Row(f"{source}{i}", "ls", source, int(i < yes))
        for source, yes in (("real", 9), ("multitalk", 2))
        for i in range(10)
    ]
    kept, dropped = balance([*rows, Row("x", "ls", "own", 1)], 0)
    assert Counter((row.source, row.label) for row in kept) == {
        **{("real", 0): 1, ("real", 1): 1},
        **{("multitalk", 0): 2, ("multitalk", 1): 2},
    }
    assert [str(cell) for cell in dropped] == ["ls of own (1 rows, all Yes)"]


@given(rows=ROWS, seed=st.integers(0, 3), order=st.integers(0, 99))
def test_every_cell_is_balanced_and_as_large_as_can_be(rows, seed, order):
    kept, dropped = balance(rows, seed)
    sides = Counter((row.dimension, row.source, row.label) for row in rows)
    for dimension, source in {(row.dimension, row.source) for row in rows}:
        least = min(sides[dimension, source, label] for label in (0, 1))
        found = Counter(row.label for row in kept if (row.dimension, row.source) == (dimension, source))
        assert found == Counter({label: least for label in (0, 1) if least})
        assert bool(least) != any((cell.dimension, cell.source) == (dimension, source) for cell in dropped)
    assert kept == [row for row in rows if row in kept], "the order is that of the rows"
    assert {*balance(random.Random(order).sample(rows, len(rows)), seed)[0]} == {*kept}


@given(rows=ROWS)
def test_other_cells_change_nothing(rows):
    alone, _ = balance([row for row in rows if row.dimension == "mn"], 0)
    assert [row for row in balance(rows, 0)[0] if row.dimension == "mn"] == alone


def test_draws_are_by_seed_and_dimension():
    """Of 40 Yes 4 are kept: another seed, and another dimension of the same videos, keep others."""
    rows = [Row(f"v{i}", d, "real", int(i >= 4)) for d in ("mn", "ls") for i in range(44)]

    def drawn(seed: int, dimension: str) -> set[str]:
        return {row.video for row in balance(rows, seed)[0] if row.dimension == dimension and row.label == 1}

    assert len({frozenset(drawn(seed, d)) for seed in (0, 1) for d in ("mn", "ls")}) == 4


def test_a_row_without_a_label_is_no_row():
    with pytest.raises(ValueError, match="no label"):
        balance([Row("v", "mn", "real", None)], 0)
