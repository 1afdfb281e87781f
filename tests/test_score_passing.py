"""Trouble that may pass: files that are not there, readers that are killed. No row, and the next run tries again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deadly_reader import die_over_big
from test_score import arguments, rows, world  # noqa: F401

from fantasy_core.critic.critic import Score
from fantasy_core.errors import UserError
from train import score as stage
from train.score_rows import read_with_state
from train.scorers import Video
from train.tables import write_rows_of


def listed(world: Path, folder: Path, *names: str) -> list[str]:  # noqa: F811
    """The arguments that score v0 and files of these names in `folder`."""
    videos = [Video("v0", str(world / "v0.mp4")), *(Video(Path(name).stem, name) for name in names)]
    write_rows_of(folder / "videos.jsonl", videos)
    return arguments(world, folder / "out", videos=folder / "videos.jsonl")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_file_that_is_not_there_is_scored_when_it_is(world, tmp_path, capsys, workers):  # noqa: F811
    given = [*listed(world, tmp_path, "late.mp4"), "--workers", workers]
    assert stage.main(given) == 2
    told = capsys.readouterr()
    assert "1 of 2 videos could not be scored now" in told.err and "late.mp4 (No such file" in told.err
    assert "1 scored, 0 of them failed" in told.out and rows(tmp_path / "out").keys() == {"v0"}
    shutil.copy(world / "v3.mp4", tmp_path / "late.mp4")
    assert stage.main(given) == 0
    assert rows(tmp_path / "out").keys() == {"v0", "late"}


def test_one_of_several_processes_warns(world, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Its error would stop the others."""
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert stage.main(listed(world, tmp_path, "late.mp4")) == 0
    assert "warning: process 1: 1 of 1 videos could not be scored now" in capsys.readouterr().err


def test_where_no_video_has_a_score_something_is_wrong(world, tmp_path, capsys):  # noqa: F811
    """Each has its row. One score, of whatever run, and they are single broken files."""
    (tmp_path / "a.mp4").write_bytes(b"no video" * 9)
    given = listed(world, tmp_path, "a.mp4")
    write_rows_of(tmp_path / "videos.jsonl", [Video("a", "a.mp4")])
    assert stage.main(given) == 2
    assert "no video has a score: 1 of 1 failed" in capsys.readouterr().err
    assert "failed" in rows(tmp_path / "out")["a"]
    listed(world, tmp_path, "a.mp4")
    assert stage.main(given) == 0
    (tmp_path / "b.mp4").write_bytes(b"no video" * 9)
    listed(world, tmp_path, "a.mp4", "b.mp4")
    assert stage.main(given) == 0 and "failed" in rows(tmp_path / "out")["b"]


class Reader:
    critic, views, read, prepare, given = "c", "v", staticmethod(die_over_big), None, ()

    def scores(self, clips):
        z = dict.fromkeys(("mn", "ls", "vq"), 1.0)
        yield from ((number, Score(z, z, 1.0, 1)) for number in range(len(clips)))


def test_a_reader_that_is_killed_leaves_no_row(world, tmp_path):  # noqa: F811
    given = stage.ScoreSettings(videos=tmp_path, out=tmp_path, workers=1, canary=False)
    jobs = [(world / "v0.mp4", Video(name, "v0.mp4")) for name in ("v0", "big")]
    passing: dict[str, UserError] = {}
    told = stage.lasting(stage.score_all(given, jobs, Reader(), {}), passing)
    assert [row["video"] for row in stage.rows_of(told, Reader())] == ["v0"]
    assert passing.keys() == {"big"} and "killed its process" in passing["big"].what


def test_a_file_that_goes_while_it_is_read_is_absent(world, tmp_path):  # noqa: F811
    """What the decoder says of it then is no verdict."""

    def goes(job):
        job[0].unlink()
        raise UserError("cannot read the video", got="nothing", expected="a video", do="convert it")

    shutil.copy(world / "v0.mp4", tmp_path / "v0.mp4")
    with pytest.raises(UserError, match="cannot open"):
        read_with_state(goes, (tmp_path / "v0.mp4", Video("v0", "v0.mp4")))
