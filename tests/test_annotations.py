"""Votes become labels: every way three people and a fourth can vote, agreement, splits, rows that were meddled with."""

from __future__ import annotations

import dataclasses
import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from train.annotations import Annotation, Vote, adjudicate, agreement, majority, read_annotations
from train.run import write_rows
from train.splits import split_of


def three(*answers: int) -> list[Vote]:
    return [Vote(name, v) for name, v in zip("abc", answers, strict=False)]


# ---- adjudication ----


@pytest.mark.parametrize("answers", list(product((0, 1), repeat=3)))
@pytest.mark.parametrize("fourth", [None, 0, 1])
def test_three_agree_or_the_fourth_decides_alone(answers, fourth):
    """All 24 cases: 3-0 is final and needs no fourth; 2-1 waits without one and follows one, against a majority too."""
    arbiter = None if fourth is None else Vote("d", fourth)
    if len(set(answers)) > 1:
        expected = (None, "needs_arbiter") if fourth is None else (fourth, "arbiter")
        assert adjudicate(three(*answers), arbiter) == expected
    elif fourth is None:
        assert adjudicate(three(*answers)) == (answers[0], "unanimous")
    else:
        with pytest.raises(UserError, match="although the three agree"):
            adjudicate(three(*answers), arbiter)


REFUSED = {
    "voted twice": ([Vote("a", 1), Vote("a", 0), Vote("b", 1)], None),
    "2 votes": (three(1, 0), None),
    "2 votes and an arbiter": (three(1, 0), Vote("d", 1)),
    "4 votes": ([*three(1, 0, 1), Vote("d", 1)], None),
    "arbiter b is one of the three": (three(1, 0, 1), Vote("b", 0)),
    "a voted 2": (three(2, 0, 1), None),
    "a voted True": (three(True, 0, 1), None),
    "d voted -1": (three(1, 0, 1), Vote("d", -1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_votes_that_make_no_label(case):
    with pytest.raises(UserError, match=case):
        adjudicate(*REFUSED[case])


def row(video: str, answers, fourth: int | None = None, **more) -> Annotation:
    votes, arbiter = three(*answers), None if fourth is None else Vote("d", fourth)
    label, how = adjudicate(votes, arbiter)
    told = {"sha256": "0", "input": "i", "source": "real", "variant": None, "dimension": "mn", "split": "train"} | more
    return Annotation(video=video, votes=votes, arbiter=arbiter, label=label, how=how, **told)


def test_agreement_by_hand():
    """3, 0, 2 and 2 Yes of 3. The fourth person went against the majority in one case of two, so labels are 1, 0, 1, 0.
    Kappa: agreeing pairs 1, 1, 1/3, 1/3, mean 2/3; Yes 7 of 12, chance (49 + 25) / 144 = 74/144; (96 - 74) / (144 - 74)
    = 22/70. One more row waits and counts in no label; another dimension counts nowhere."""
    rows = [row("v0", (1, 1, 1)), row("v1", (0, 0, 0)), row("v2", (1, 1, 0), 1), row("v3", (1, 0, 1), 0, source="x")]
    told = agreement(rows)["mn"]
    assert told["kappa"] == pytest.approx(22 / 70) and (told["unanimous"], told["yes"]) == (0.5, 0.5)
    assert (told["arbiter"], told["reversed"], told["reversal_rate"]) == (2, 1, 0.5)
    assert told["yes_by_source"] == {"real": pytest.approx(2 / 3), "x": 0.0} and told["labels"] == {"train": 4}
    told = agreement([*rows, row("v4", (1, 0, 0)), row("w", (0, 0, 0), dimension="ls")])["mn"]
    followed = agreement([*rows, row("v4", (1, 0, 0), 0)])["mn"]
    assert (followed["arbiter"], followed["reversed"], followed["reversal_rate"]) == (3, 1, pytest.approx(1 / 3))
    assert (told["rows"], told["needs_arbiter"], told["labels"]) == (5, 1, {"train": 4})
    assert agreement([])["vq"]["reversal_rate"] is None
    assert [majority(three(*answers)) for answers in ((1, 1, 0), (0, 1, 0))] == [1, 0]


# ---- splits ----


def test_the_split_is_of_the_asked_size_and_seeded():
    """Of 4000 names 0.1 is 400, give or take three deviations of sqrt(4000 * 0.09) = 19."""
    names = [f"input {i}" for i in range(4000)]
    tests = [{name for name in names if split_of(name, 0.1, seed) == "test"} for seed in (0, 1)]
    assert all(abs(len(found) - 400) < 57 for found in tests) and tests[0] != tests[1]
    assert len(tests[0] & tests[1]) < 80, "another seed is another draw: 40 in common, by chance"
    assert {split_of(name, 0.0) for name in names} == {"train"} and {split_of(name, 1.0) for name in names} == {"test"}


@given(name=st.text(), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_share_keeps_what_was_test(name, low, high):
    low, high = sorted((low, high))
    assert not (split_of(name, low) == "test" and split_of(name, high) == "train")


# ---- rows ----


def test_rows_come_back_as_they_were(tmp_path):
    rows = [row("v0", (1, 1, 1)), row("v1", (1, 0, 1), 0, variant=3), row("v2", (0, 0, 1), split="test", input="j")]
    write_rows(tmp_path / "a.jsonl", rows)
    assert read_annotations(tmp_path / "a.jsonl") == rows
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])
    assert list(first) == [field.name for field in dataclasses.fields(Annotation)]
    assert first["votes"][0] == {"by": "a", "v": 1} and first["arbiter"] == {"by": "d", "v": 0}


WRONG_ROWS = {
    "label 1, arbiter, where the votes say 0": [dataclasses.replace(row("v", (1, 0, 1), 0), label=1)],
    "label 1, unanimous, where the votes say 0": [dataclasses.replace(row("v", (0, 0, 0)), label=1)],
    "label None": [dataclasses.replace(row("v", (0, 0, 0)), label=None)],
    "v mn: twice": [row("v", (0, 0, 0)), row("v", (1, 1, 1))],
    "input i is in test and train": [row("v", (0, 0, 0)), row("w", (0, 0, 0), split="test")],
    "dimension sync": [row("v", (0, 0, 0), dimension="sync")],
    "split validation": [row("v", (0, 0, 0), split="validation")],
    "2 votes": [dataclasses.replace(row("v", (0, 0, 0)), votes=three(0, 0))],
    "no row of this file": [dataclasses.replace(row("v", (0, 0, 0)), votes=None)],
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_rows_that_were_meddled_with(tmp_path, case):
    write_rows(tmp_path / "a.jsonl", WRONG_ROWS[case])
    with pytest.raises(UserError, match=case):
        read_annotations(tmp_path / "a.jsonl")
