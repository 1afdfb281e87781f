"""Metrics made from names and paths: each choice is the backend that it says, and what lacks is told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from onnx_layouts import blue_joints, red_persons

from fantasy_core.errors import UserError
from fantasy_core.metrics.chosen import dynamics, hands, qalign

CACHE = Path.home() / ".cache" / "fantasytalking2"
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")), reason="no onnx and onnxruntime"
)


@needs_onnx
def test_a_folder_is_dwpose_by_the_usual_names_or_by_given_ones(tmp_path):
    red_persons(tmp_path / "yolox_l.onnx")
    blue_joints(tmp_path / "mine.onnx")
    with pytest.raises(UserError, match="dw-ll_ucoco_384.onnx"):
        hands(tmp_path)
    settings = hands(tmp_path, pose="mine.onnx").settings
    assert (settings["detector"], settings["person_weights"]) == ("dwpose", "yolox_l.onnx")
    assert settings["pose_weights"] == "mine.onnx"


def test_a_folder_without_networks_is_told(tmp_path):
    with pytest.raises(UserError, match="no .onnx in it"):
        hands(tmp_path)


@pytest.mark.skipif(not (CACHE / "hand_landmarker.task").is_file(), reason="no hand_landmarker.task")
def test_a_task_is_mediapipe():
    assert "mediapipe" in str(hands(CACHE / "hand_landmarker.task").settings["detector"])


def test_code_of_others_runs_with_leave_alone(tmp_path):
    with pytest.raises(UserError, match="brings its own program"):
        qalign(tmp_path)


def test_masks_that_need_no_face(tmp_path):
    pytest.importorskip("cv2", exc_type=ImportError)
    assert dynamics(mask="none").columns == ("flow", "flow_top5")
    metric = dynamics(mask="given", masks=str(tmp_path))
    assert metric.columns[:2] == ("sd", "bd") and metric.settings["flow"] == "dis"


WRONG = {
    "unknown optical flow": {"flow": "liteflow", "mask": "none"},
    "unknown mask of the subject": {"mask": "sam"},
    "raft needs its weights": {"flow": "raft", "mask": "none"},
}


@pytest.mark.parametrize("told", WRONG)
def test_what_there_is_not_is_told(told):
    pytest.importorskip("cv2", exc_type=ImportError)
    with pytest.raises(UserError, match=told):
        dynamics(**WRONG[told])


@pytest.mark.skipif(not (CACHE / "face_landmarker.task").is_file(), reason="no face_landmarker.task")
def test_masks_that_begin_with_a_face():
    task = CACHE / "face_landmarker.task"
    try:
        metric = dynamics(task)
    except UserError as error:
        pytest.skip(error.got)
    assert metric.settings["mask"] == "face-box" and metric.settings["face_weights_sha256"]
    with pytest.raises(UserError, match="sam2 needs its weights"):
        dynamics(task, mask="sam2")
