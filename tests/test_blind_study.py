"""A user study from the list of videos to Table 4, whose raters learn neither method nor clip."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from urllib.parse import unquote

import pytest

from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS
from train import annotate
from train.evaluate import main as evaluate
from train.label_studio import Answer
from train.ratings import Studied, ratings_of_answers


@pytest.fixture
def rivals(tmp_path) -> Path:
    """Two methods on two clips, in folders and by names that tell."""
    rows = []
    for method, clip in product(("fantasytalking2", "multitalk"), ("anna", "ben")):
        path = tmp_path / "results" / method / f"{clip}.MP4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{method} {clip}".encode())
        row = {"video": f"{method}-{clip}", "input": clip, "path": f"{method}/{clip}.MP4", "source": method}
        rows.append(row | {"variant": f"{method}-v2"})
    (tmp_path / "results" / "videos.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path / "results" / "videos.jsonl"


def study(videos: Path, *more: str) -> list[str]:
    return ["tasks", "--project", "study", "--videos", str(videos), "--out", str(videos.parent.parent / "out"), *more]


def test_a_study_is_blind_and_comes_back(rivals, tmp_path, capsys):
    """Raters get no name of a method or clip: not in the tasks, not in the files' names. Their ratings, by opaque
    names, become Table 4 by the list that was kept: method fantasytalking2 was given 9 everywhere, multitalk 6."""
    given = study(rivals)
    out = tmp_path / "out"
    assert annotate.main([*given, "--dry-run"]) == 0 and not out.exists()
    assert annotate.main(given) == 0
    assert "keep it from the raters" in capsys.readouterr().out
    text = (out / "study_tasks.json").read_text()
    seen = text + " ".join(path.name for path in (out / "study_videos").iterdir())
    assert not [word for word in ("fantasy", "multitalk", "anna", "ben", "results") if word in seen.lower()]

    tasks, methods = json.loads(text), {}
    for one in tasks:
        shown = out / unquote(one["data"]["url"].split("?d=")[1])
        assert shown.parent.name == "study_videos" and shown.stem == one["data"]["video"] and shown.suffix == ".mp4"
        method, _ = methods[one["data"]["video"]] = tuple(shown.read_text().split())
        value = {"number": 9 if method == "fantasytalking2" else 6}
        result = [{"from_name": d, "type": "number", "value": value} for d in DIMENSIONS]
        one["annotations"] = [{"id": by, "completed_by": by, "result": result} for by in (1, 2)]
    (tmp_path / "e.json").write_text(json.dumps(tasks))
    rated = ["--ratings", str(tmp_path / "e.json"), "--out", str(tmp_path / "report")]
    assert evaluate([*rated, "--videos", str(rivals)]) == 2  # its names are not those that were rated
    assert "study_videos.jsonl" in capsys.readouterr().err
    assert evaluate([*rated, "--videos", str(out / "study_videos.jsonl")]) == 0
    told = json.loads((tmp_path / "report" / "evaluation.json").read_text())["study"]
    assert {m: row["ls"]["mean"] for m, row in told["methods"].items()} == {"fantasytalking2": 9, "multitalk": 6}
    assert told["clips"] == 2 and len(set(methods.values())) == 4


def test_a_running_study_is_not_lost(rivals, tmp_path, capsys):
    """Again by the same seed: the same names. A video that is made anew leaves the copy that raters see as it is, and
    neither it nor another seed may take the place of the list that tells whose they are. Videos may be added."""
    out = tmp_path / "out"

    def names(*more: str) -> dict[str, str]:
        assert annotate.main(study(rivals, *more)) == 0
        rows = [json.loads(line) for line in (out / "study_videos.jsonl").read_text().splitlines()]
        return {f"{row['source']}-{row['input']}": row["video"] for row in rows}

    first = names()
    assert names() == first
    lines = rivals.read_text()
    (rivals.parent / "multitalk" / "carl.MP4").write_text("multitalk carl")
    added = {"video": "multitalk-carl", "input": "carl", "path": "multitalk/carl.MP4", "source": "multitalk"}
    rivals.write_text(lines + json.dumps(added) + "\n")
    assert names() == first | {"multitalk-carl": names()["multitalk-carl"]} and len(names()) == 5
    with (rivals.parent / "multitalk" / "ben.MP4").open("r+") as file:  # in place, as ffmpeg -y writes
        file.write("MULTITALK")
    for more in ((), ("--seed", "1")):
        assert annotate.main(study(rivals, *more)) == 2
        assert "holds another study" in capsys.readouterr().err
    assert (out / "study_videos" / f"{first['multitalk-ben']}.mp4").read_text() == "multitalk ben"


def test_a_list_that_is_older_than_its_videos(rivals, capsys):
    rows = [json.loads(line) | {"sha256": "0" * 64} for line in rivals.read_text().splitlines()]
    rivals.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert annotate.main(study(rivals)) == 2
    assert "older than its videos" in capsys.readouterr().err


def test_ratings_of_another_file_are_not_its_own():
    answer = Answer("v", "a" * 64, "1", "mn", 9, 1)
    with pytest.raises(UserError, match="another file"):
        ratings_of_answers([answer], {"v": Studied("v", "anna", "multitalk", "b" * 64)})
