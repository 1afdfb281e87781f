"""Ratings of a user study: from an export, from a table, and what makes neither."""

from __future__ import annotations

import json

import pytest

from fantasy_core.errors import UserError
from train.ratings import Rating, Studied, ratings_of, read_ratings

VIDEOS = {"v0": Studied("v0", "clip 1", "ours"), "v1": Studied("v1", "clip 1", "multitalk")}
GOOD = {"rater": "r", "clip": "c", "method": "m", "mn": 0, "ls": "10", "vq": 7.5}


def task(video: str, *people: tuple[int, tuple]) -> dict:
    """A task with one annotation a person: mn, ls, vq."""
    annotations = [
        {
            "completed_by": by,
            "was_cancelled": False,
            "result": [
                {"from_name": name, "to_name": "clip", "type": "number", "value": {"number": value}}
                for name, value in zip(("mn", "ls", "vq"), values, strict=False)
            ],
        }
        for by, values in people
    ]
    return {"data": {"video": video, "url": "/x"}, "annotations": annotations}


def test_an_export_and_a_table_are_the_same_ratings(tmp_path):
    tasks = [task("v0", (1, (8, 9, 10)), (2, (0, 5.5, 3))), task("v1", (1, (7, 7, 7)))]
    (tmp_path / "e.json").write_text(json.dumps(tasks))
    table = (
        "rater,clip,method,mn,ls,vq,age\n1,clip 1,ours,8,9,10,30\n2,clip 1,ours,0,5.5,3,40\n1,clip 1,multitalk,7,7,7,\n"
    )
    (tmp_path / "e.csv").write_text(table)
    found = read_ratings(tmp_path / "e.json", VIDEOS)
    assert found == read_ratings(tmp_path / "e.csv", {})
    assert found[1] == Rating("2", "clip 1", "ours", 0.0, 5.5, 3.0)


WRONG = {
    "ls is 10.5": {"ls": 10.5},
    "mn is -1": {"mn": -1},
    "vq is 'good'": {"vq": "good"},
    "vq is nan": {"vq": float("nan")},
    "mn is True": {"mn": True},
    "mn is None": {"mn": None},
    "no rater": {"rater": ""},
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_are_no_rating(case):
    assert ratings_of([GOOD])[0].ls == 10.0
    with pytest.raises(UserError, match=case):
        ratings_of([GOOD, GOOD | {"clip": "other"} | WRONG[case]])


def test_nobody_rates_a_video_twice(tmp_path):
    with pytest.raises(UserError, match="r c m: rated 2 times"):
        ratings_of([GOOD, GOOD | {"mn": 3}])
    (tmp_path / "e.json").write_text(json.dumps([task("v0", (1, (8, 9, 10)), (1, (8, 9, 10)))]))
    with pytest.raises(UserError, match="1 clip 1 ours: rated 2 times"):
        read_ratings(tmp_path / "e.json", VIDEOS)


def test_what_was_not_rated_and_what_is_not_known(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps([task("v0", (1, (8, 9)))]))
    with pytest.raises(UserError, match="1 clip 1 ours: vq is None"):
        read_ratings(tmp_path / "e.json", VIDEOS)
    with pytest.raises(UserError, match="other videos"):
        read_ratings(tmp_path / "e.json", {})
