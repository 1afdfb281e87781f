"""Videos without a face: what is not of the face is scored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_score import arguments, rows, world  # noqa: F401

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.files import show_file
from fantasy_core.critic.thinker import load_thinker, load_tokenizer
from fantasy_core.errors import NoFace
from train import score as stage
from train.scorers import CriticScorer

TASK = Path(os.environ.get("FACE_LANDMARKER_TASK") or Path.home() / ".cache/fantasytalking2/face_landmarker.task")


def nobody(path: Path, seconds: float):
    raise NoFace(f"{path} shows no face", got="none", expected="a face", do="leave it out")


def everywhere(path: Path, seconds: float):
    return 0, 0, 56, 84


def test_without_a_face_only_its_view_is_empty(world):  # noqa: F811
    path, views = world / "v0.mp4", read_views("separate")
    shown, whole = show_file(path, views, nobody), show_file(path, views, everywhere)
    assert shown.keys() == whole.keys() == {"motion", "face", "picture"} and shown["face"] == [] != whole["face"]
    assert torch.equal(shown["motion"][0].frames, whole["motion"][0].frames)
    with pytest.raises(NoFace):
        show_file(path, views.only(["ls"]), nobody)


def test_motion_and_quality_are_scored_without_a_face(world):  # noqa: F811
    """Beside a clip with one, in one pool: z of the two other dimensions are those of the clip with a face, for they
    see the same frames. v1 has neither face nor sound, which is said once. No canary without a face."""
    base, views = world / "base", read_views("separate")
    critic = Critic(load_thinker(base, dtype=torch.float32), load_tokenizer(base), views, read_questions())
    scorer, path = CriticScorer(critic, 1000), world / "v0.mp4"
    clips = [
        show_file(path, views, nobody),
        show_file(path, views, everywhere),
        show_file(world / "v1.mp4", views, nobody),
    ]
    found = dict(scorer.scores(clips))
    assert found[0].z["ls"] is None and found[1].z["ls"] is not None and found[2].z["ls"] is None
    for dimension in ("mn", "vq"):
        assert found[0].z[dimension] == pytest.approx(found[1].z[dimension], abs=1e-5)
    for number in (0, 2):
        assert [w for w in found[number].warnings if "judged" in w] == ["no face: ls cannot be judged"]
    assert not any("face" in warning for warning in found[1].warnings)
    assert scorer.canary(clips[0]) is None and scorer.canary(clips[1])


def test_real_faces_are_looked_for(world, tmp_path):  # noqa: F811
    """These videos are noise, in which mediapipe sees nobody. The file that is no video has failed as before."""
    pytest.importorskip("mediapipe")
    if not TASK.is_file():
        pytest.skip(f"no face_landmarker.task at {TASK}; set FACE_LANDMARKER_TASK")
    assert stage.main(arguments(world, tmp_path, views="separate", task=TASK, workers=1)) == 0
    found = rows(tmp_path)
    assert [name for name, row in found.items() if "failed" in row] == ["v2"]
    assert all(found[n]["z_ls"] is None and found[n]["z_mn"] is not None for n in ("v0", "v1", "v3", "v4", "v5"))
