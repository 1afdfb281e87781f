"""Labels of videos that cannot be shown: found before the first step, left out, and remembered."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from test_train_critic import arguments, log_of, world  # noqa: F401
from two_processes import together

from fantasy_core.critic.asked import read_views
from fantasy_core.errors import NoFace
from train import critic as stage
from train import scorers
from train.journal import read_parts

TASK = Path(os.environ.get("FACE_LANDMARKER_TASK") or Path.home() / ".cache/fantasytalking2/face_landmarker.task")


@pytest.fixture
def damaged(world, tmp_path) -> Path:  # noqa: F811
    """The same world with v3, which is labelled Yes, cut short."""
    folder = tmp_path / "damaged"
    shutil.copytree(world, folder)
    (folder / "v3.mp4").write_bytes(b"half a video" * 9)
    return folder


def test_why_a_video_cannot_be_judged(world, monkeypatch):  # noqa: F811
    """Without a face lip sync alone; a file that is none is an error for `each` to catch."""

    def nobody(path: Path, seconds: float):
        raise NoFace(f"{path} shows no face", got="none", expected="a face", do="leave it out")

    monkeypatch.setattr(scorers, "_reader", {"views": read_views("separate"), "finder": nobody})
    path = world / "v0.mp4"
    assert scorers.unseen((path, ("mn", "ls", "vq"))) == {"ls": "no face"} == scorers.unseen((path, ("ls",)))
    assert scorers.unseen((path, ("mn", "vq"))) == {}


def test_labels_of_broken_files_are_left_out(damaged, tmp_path, capsys):
    """Of six Yes and six No five and five are left, an iteration of ten each. The same command looks at no file again.
    A file that is mended cannot come into a run that has begun, but into another."""
    out = tmp_path / "out"
    told = {"batch": 10, "epochs": 2, "save-every": 1}
    assert stage.main(arguments(damaged, out, **told)) == 0
    said = capsys.readouterr().out
    assert "left out 1 of 12 labels" in said and "v3 vq (cannot read the video" in said and "10 balanced" in said
    assert len(log_of(out)) == 2 and json.loads((out / "adapter/critic.json").read_text())["labels"] == 10
    assert [row[:2] for row in json.loads((out / "left_out.json").read_text())["left_out"]] == [["v3", "vq"]]
    looks = list(read_parts(out / "looked_at"))
    assert len(looks) == 12 and stage.main(arguments(damaged, out, **told)) == 0
    assert list(read_parts(out / "looked_at")) == looks
    shutil.copy(damaged / "v1.mp4", damaged / "v3.mp4")
    assert stage.main(arguments(damaged, out, **told)) == 2
    assert "videos have changed" in capsys.readouterr().err
    assert stage.main(arguments(damaged, tmp_path / "other", **told)) == 0
    assert not (tmp_path / "other/left_out.json").exists()


def test_processes_share_the_looks(damaged, tmp_path):
    """Both leave out the same label, each having looked at half of the files."""
    together(tmp_path, stage.main, arguments(damaged, tmp_path / "out", batch=10, epochs=1))
    parts = sorted((tmp_path / "out/looked_at").glob("part-*"))
    assert [len(part.read_text().splitlines()) for part in parts] == [6, 6]
    assert len(log_of(tmp_path / "out")) == 1


def test_labels_of_lip_sync_need_a_face(world, tmp_path, capsys):  # noqa: F811
    """Noise, in which mediapipe sees nobody: the labels of vq, whose view is the whole frame, are all learnt from."""
    pytest.importorskip("mediapipe")
    if not TASK.is_file():
        pytest.skip(f"no face_landmarker.task at {TASK}; set FACE_LANDMARKER_TASK")
    labels = [json.loads(line) for line in (world / "annotations.jsonl").read_text().splitlines()]
    labels += [row | {"dimension": "ls"} for row in labels]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    told = {"annotations": tmp_path / "both.jsonl", "views": "separate", "task": TASK, "workers": 1, "epochs": 0.1}
    assert stage.main(arguments(world, tmp_path / "out", **told)) == 0
    said = capsys.readouterr().out
    assert "left out 12 of 24 labels" in said and "ls (no face)" in said and "12 balanced" in said
    assert json.loads((tmp_path / "out/adapter/critic.json").read_text())["dimensions"] == ["vq"]
