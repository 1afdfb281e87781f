"""Videos that are made anew under their old name: their scores and pairs are of the new file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from test_score import arguments, world  # noqa: F401

from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from train import score as stage
from train.journal import read_parts
from train.score_files import Source, read_scores
from train.score_rows import latest
from train.scored import read_scored
from train.tables import part_files


@pytest.fixture
def mine(world, tmp_path) -> Path:  # noqa: F811
    """Two videos, `a` and `b`, and a list without hashes."""
    for name, source in (("a", "v0"), ("b", "v3")):
        shutil.copy(world / f"{source}.mp4", tmp_path / f"{name}.mp4")
    listed(tmp_path)
    return tmp_path


def listed(folder: Path, **hashes: str) -> Path:
    rows = [{"video": name, "path": f"{name}.mp4", "input": "i", "sha256": hashes.get(name, "")} for name in "ab"]
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "videos.jsonl"


def score(world: Path, folder: Path) -> list[dict]:  # noqa: F811
    assert stage.main(arguments(world, folder / "scores", videos=folder / "videos.jsonl")) == 0
    return list(read_parts(folder / "scores"))


def z_of(folder: Path) -> dict[str, float]:
    found = read_scored(folder / "videos.jsonl", part_files([folder / "scores"]))
    return dict(zip(found.videos.to_pylist(), found.candidates.z[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("hashes", [True, False])
def test_a_remade_video_is_scored_again_and_the_new_score_counts(world, mine, capsys, hashes):  # noqa: F811
    """`a` becomes v4, whose z is another; then v0 again, whose first row does not come back to life by itself."""

    def remake(source: str) -> list[dict]:
        shutil.copy(world / f"{source}.mp4", mine / "a.mp4")
        listed(mine, **({name: sha256(mine / f"{name}.mp4") for name in "ab"} if hashes else {}))
        return score(world, mine)

    first = remake("v0")
    assert [row["video"] for row in first] == ["a", "b"] and all("replaces" not in row for row in first)
    assert first[0]["sha256"] == sha256(world / "v0.mp4") and ("size" in first[0]) is not hashes
    rows = remake("v4")
    assert len(rows) == 3 and rows[2]["video"] == "a" and rows[2]["replaces"] == 1
    assert "scored again: a" in capsys.readouterr().out
    assert z_of(mine) == {"a": rows[2]["z_mn"], "b": rows[1]["z_mn"]} and rows[2]["z_mn"] != rows[0]["z_mn"]
    assert read_scores(Source(mine / "scores"))["mn"] == z_of(mine)
    assert score(world, mine) == rows
    rows = remake("v0")
    assert len(rows) == 4 and rows[3]["replaces"] == 2 and rows[3]["sha256"] == rows[0]["sha256"]
    assert z_of(mine)["a"] == rows[3]["z_mn"] == pytest.approx(rows[0]["z_mn"], abs=1e-5)


def test_only_what_may_have_changed_is_read(world, mine):  # noqa: F811
    """Another time, same content: no row. A file that is gone keeps its score. A row without a hash, of an earlier
    version, counts; so does one whose list tells the hash now."""
    rows = score(world, mine)
    os.utime(mine / "a.mp4", ns=(1, 1))
    assert score(world, mine) == rows
    listed(mine, a=sha256(mine / "a.mp4"))
    (mine / "a.mp4").unlink()
    assert score(world, mine) == rows
    part = mine / "scores" / "part-00000.jsonl"
    old = [{name: value for name, value in row.items() if name not in ("sha256", "size", "mtime_ns")} for row in rows]
    part.write_text("".join(json.dumps(row) + "\n" for row in old))
    shutil.copy(world / "v4.mp4", mine / "b.mp4")
    assert score(world, mine) == old and z_of(mine).keys() == {"a", "b"}


def test_a_broken_file_that_is_mended_is_scored(world, mine, capsys):  # noqa: F811
    """Whether the list tells the right hash, which the broken file does not have, or none."""
    good = sha256(mine / "a.mp4")
    for hashes in ({}, {"a": good}):
        shutil.rmtree(mine / "scores", ignore_errors=True)
        listed(mine, **hashes)
        (mine / "a.mp4").write_bytes(b"half a video" * 9)
        rows = score(world, mine)
        assert "failed" in {row["video"]: row for row in rows}["a"] and score(world, mine) == rows
        shutil.copy(world / "v0.mp4", mine / "a.mp4")
        rows = score(world, mine)
        assert len(rows) == 3 and "failed" not in rows[2] and z_of(mine)["a"] == rows[2]["z_mn"]


def test_pairs_take_no_score_of_another_file(mine):
    """Hashes are compared where both tell one. c scores: `a` of a file that is gone, `b` without a hash."""
    judged = {"critic": "c", "views": "v"}
    rows = [{"video": "a", "z_mn": 1.0, "z_ls": 1.0, "z_vq": 1.0, "sha256": "old", **judged}]
    rows += [{"video": "b", "z_mn": 2.0, "z_ls": 2.0, "z_vq": 2.0, **judged}]
    part = mine / "scores" / "part-00000.jsonl"
    part.parent.mkdir()
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert z_of(mine) == {"a": 1.0, "b": 2.0}
    listed(mine, a="new", b="any")
    assert z_of(mine) == {"b": 2.0}
    assert read_scored(mine / "videos.jsonl", [part]).facts["of_other_files"] == 1
    assert read_scores(Source(mine / "scores"), {"a": "new"})["mn"] == {"b": 2.0}
    assert read_scores(Source(mine / "scores"), {"a": "old", "b": ""})["mn"] == {"a": 1.0, "b": 2.0}
    part.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="no score of these files"):
        z_of(mine)


class Judge:
    critic, views = "c", "v"


def test_of_rows_that_replace_nothing_a_good_one_counts():
    """As folders of earlier versions have them, whatever the order of the parts."""
    good = {"video": "a", "critic": "c", "views": "v"}
    bad = good | {"failed": "broken"}
    assert latest([bad, good], Judge())["a"] is good and latest([good, bad], Judge())["a"] is good
    assert latest([good, bad | {"replaces": 1}], Judge())["a"]["failed"]
    assert latest([good | {"critic": "other"}], Judge()) == {}
