"""What finds hands: DWPose's two networks decoded against marks of known place, and mediapipe's hands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx_layouts import JOINT_SCORES, SHARE, blue_joints, red_persons
from PIL import Image, ImageDraw, ImageFilter

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Video
from fantasy_core.metrics.dwpose import DwPose, chosen, decoded, letterbox, person, suppressed
from fantasy_core.metrics.hand_landmarks import MediapipeHands, by_side
from fantasy_core.metrics.hands import HandMotion

TASK = Path.home() / ".cache" / "fantasytalking2" / "hand_landmarker.task"
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")), reason="no onnx and onnxruntime"
)


def marked(joint=(230, 300), cell=(6, 9), green: int = 0, size=(640, 480)) -> np.ndarray:
    """A frame with a red cell of 32 px, which is a person, and a soft blue dot at (x, y), where its joints are."""
    frame = np.zeros((*size, 3), np.uint8)
    left, top = 32 * cell[0], 32 * cell[1]
    frame[top : top + 32, left : left + 32, :2] = 250, green
    rows, columns = np.mgrid[: size[0], : size[1]]
    frame[..., 2] = 255 * np.exp(-((columns - joint[0]) ** 2 + (rows - joint[1]) ** 2) / 18)
    return frame


@pytest.fixture(scope="module")
def dwpose(tmp_path_factory) -> DwPose:
    folder = tmp_path_factory.mktemp("onnx")
    return DwPose(red_persons(folder / "yolox_l.onnx"), blue_joints(folder / "dw-ll_ucoco_384.onnx"))


@needs_onnx
def test_joints_lie_where_the_mark_is(dwpose):
    """The person's box is 128 x 192 around (208, 304); 1.25 times that and 3 by 4 is 180 x 240, seen at 288 x 384: a
    bin of half a pixel there is 0.31 here. A score is the lower peak, of x: a quarter of the normalised blue, times the
    joint's own, less what the dot loses between two pixels (4 %)."""
    with dwpose.open() as hands:
        found = hands(marked())
    assert found.shape == (2, 21, 3)
    assert np.abs(found[..., :2] - (230, 300)).max() <= 0.5
    peak = SHARE * (255 - 103.53) / 57.375
    assert found[0, :, 2] == pytest.approx(peak * JOINT_SCORES[91:112], rel=0.05)
    assert found[1, :, 2] == pytest.approx(peak * JOINT_SCORES[112:133], rel=0.05)


@needs_onnx
def test_frames_of_any_size(dwpose):
    """Twice the width: shrunk to 2 / 3 for the person, whose cell is 48 px in the frame; the joint in its own place."""
    frame = np.zeros((640, 960, 3), np.uint8)
    frame[..., 2] = marked((420, 300), size=(640, 960))[..., 2]
    frame[288:336, 432:480, 0] = 255  # cell (9, 6) of the shrunk frame: 288..320 and 192..224, times 3 / 2
    with dwpose.open() as hands:
        found = hands(frame)
    assert np.abs(found[..., :2] - (420, 300)).max() <= 0.7


@needs_onnx
def test_the_largest_person_counts(dwpose):
    """Two red cells, far apart, each with its dot; the one that is green too has a box 1.5 times as large."""
    frame = np.maximum(marked((100, 110), (3, 3)), marked((380, 520), (12, 16), green=255))
    with dwpose.open() as hands:
        assert np.abs(hands(frame)[..., :2] - (380, 520)).max() <= 0.7


@needs_onnx
def test_nobody_is_no_hand(dwpose):
    metric = HandMotion(dwpose)
    nobody = Video(Path("a.mp4"), np.zeros((9, 64, 64, 3), np.uint8), np.arange(9) / 25)
    found = metric.measure(nobody)
    assert found.values["hkc"] is None and found.reasons["hkv"] == "no hand in any frame"
    assert {"person_weights_sha256", "pose_weights_sha256", "detector"} <= metric.settings.keys()


@needs_onnx
def test_a_hand_that_goes_in_a_circle(dwpose):
    """Radius 20 px of 480, which is 21.3 of 512: HKV 455, within what half a bin can do (0.3 of 20 px, twice)."""
    angles = 2 * np.pi * np.arange(16) / 16
    frames = np.stack([marked((230 + 20 * np.cos(a), 300 + 20 * np.sin(a))) for a in angles])
    found = HandMotion(dwpose).measure(Video(Path("a.mp4"), frames, np.arange(16) / 25))
    assert found.values["hkv"] == pytest.approx((20 * 512 / 480) ** 2, rel=0.04)
    assert found.values["hand_presence"] == 1 and found.values["hkc"] is not None


@needs_onnx
def test_files_of_another_layout(tmp_path):
    persons, joints = red_persons(tmp_path / "p.onnx"), blue_joints(tmp_path / "j.onnx")
    fewer = blue_joints(tmp_path / "body.onnx", points=17)
    text = tmp_path / "text.onnx"
    text.write_text("no network")
    for detector, pose, word in ((joints, joints, "yolox"), (persons, fewer, "133"), (persons, text, "text.onnx")):
        with pytest.raises(UserError, match=word), DwPose(detector, pose).open():
            pass
    with pytest.raises(UserError, match="nowhere"):
        DwPose("nowhere.onnx", joints)


def test_a_frame_shrunk_into_grey():
    """400 x 200 into 640 x 640: 1.6 times as large, blue first, grey beside."""
    frame = np.full((400, 200, 3), (10, 20, 30), np.uint8)
    picture, ratio = letterbox(frame, (640, 640))
    assert ratio == 1.6 and (picture[:, :, :320] == np.array([30, 20, 10])[:, None, None]).all()
    assert (picture[:, :, 320:] == 114).all()


def test_what_the_pose_network_sees():
    """A box of 96 x 240 becomes 225 x 300 (3 by 4) around its middle: scale 300 / 384, corner 112.5 and 150 from it."""
    _, origin, scale = person(np.zeros((480, 640, 3), np.uint8), np.array([200.0, 100, 296, 340]), 384, 288)
    assert scale == pytest.approx(300 / 384) and origin == pytest.approx([248 - 112.5, 220 - 150])


def test_likelihoods_by_hand():
    x, y = np.zeros((1, 133, 576)), np.zeros((1, 133, 768))
    x[0, 5, 101], y[0, 5, 64] = 0.9, 0.7
    assert decoded(x, y)[5].tolist() == [50.5, 32.0, 0.7]


def test_boxes_that_are_one():
    """Overlap 0.6 of both: the likelier stays; 0.43: both stay. A network that suppresses by itself gives class and
    score of every box."""
    boxes = np.array([[0.0, 0, 10, 10], [0, 2.5, 10, 12.5], [0, 30, 10, 40], [0, 34, 10, 44]])
    assert suppressed(boxes, np.array([0.5, 0.9, 0.5, 0.6]))[:, 1].tolist() == [2.5, 34, 30]
    found = [np.array([[[0, 0, 9, 9, 0.9], [0, 0, 5, 5, 0.2], [0, 0, 7, 7, 0.8]]]), np.array([[0, 0, 7]])]
    assert chosen(found).tolist() == [[0, 0, 9, 9]] and len(chosen(found[:1])) == 2


def test_two_hands_on_one_side():
    """The surer one keeps it."""
    first, second = np.zeros((21, 2)), np.ones((21, 2))
    found = by_side([("Right", 0.6), ("Right", 0.9)], [first, second])
    assert (found[1, :, :2] == 1).all() and (found[0, :, :2] == 0).all() and np.isnan(found[..., 2]).all()
    assert np.isnan(by_side([], [])).all() and np.isnan(by_side([("Left", 0.9)], [first])[1]).all()


TIPS = np.array([(190, 350), (245, 190), (310, 160), (375, 185), (425, 250)])  # thumb to little finger


def drawn_hand(x: float = 0, y: float = 0) -> np.ndarray:
    """A frame of 560 x 640 with an open hand, whose fingertips are TIPS, moved by (x, y)."""
    picture = Image.new("RGB", (640, 560), (60, 90, 120))
    pen, skin, edge = ImageDraw.Draw(picture), (224, 172, 140), (170, 120, 95)
    knuckles = [(255, 430), (270, 330), (310, 320), (350, 328), (385, 350)]
    for colour, more in ((edge, 3), (skin, 0)):
        pen.ellipse((242 - more + x, 308 - more + y, 398 + more + x, 492 + more + y), colour)
        pen.rectangle((277 - more + x, 410 + y, 363 + more + x, 560), colour)
        for (u, v), knuckle, wide in zip(TIPS + (x, y), knuckles, (36, 32, 34, 32, 28), strict=True):
            pen.line((knuckle[0] + x, knuckle[1] + y, u, v), colour, wide + 2 * more)
            half = wide / 2 + more
            pen.ellipse((u - half, v - half, u + half, v + half), colour)
    for (u, v), knuckle in zip(TIPS + (x, y), knuckles, strict=True):
        for part in (0.35, 0.68):
            across, down = knuckle[0] + x + part * (u - knuckle[0] - x), knuckle[1] + y + part * (v - knuckle[1] - y)
            pen.line((across - 10, down, across + 10, down), edge, 2)
        pen.ellipse((u - 8, v - 8, u + 8, v + 8), (240, 200, 180))
    return np.array(picture.filter(ImageFilter.GaussianBlur(1)))


@pytest.fixture(scope="module")
def mediapipe_hands() -> MediapipeHands:
    if not TASK.exists():
        pytest.skip(f"no {TASK}")
    try:
        return MediapipeHands(TASK)
    except UserError as error:
        pytest.skip(error.got)


def test_mediapipe_finds_a_drawn_hand_and_none_on_a_grey_wall(mediapipe_hands):
    """Fingertips within 20 px of where they are drawn; moved by (20, -10) they move as far, within 8 px."""
    with mediapipe_hands.open() as hands:
        found, moved, none = (
            hands(f) for f in (drawn_hand(), drawn_hand(20, -10), np.full((480, 480, 3), 127, np.uint8))
        )
    there = np.flatnonzero(np.isfinite(found[:, 0, 0]))
    assert len(there) == 1 and np.isnan(none).all() and np.isnan(found[..., 2]).all()
    tips = found[there[0], [4, 8, 12, 16, 20], :2]
    assert np.linalg.norm(tips - TIPS, axis=1).max() < 20
    assert np.abs(moved[there[0], [4, 8, 12, 16, 20], :2] - tips - (20, -10)).max() < 8


def test_mediapipe_has_no_hkc(mediapipe_hands):
    """A hand that swings by 12 px to both sides of 560, which is 11 of 512, within a tenth."""
    metric = HandMotion(mediapipe_hands)
    swing = 12 * np.sign(np.sin(np.arange(8) * np.pi + 0.1))
    frames = np.stack([drawn_hand(x) for x in swing])
    found = metric.measure(Video(Path("a.mp4"), frames, np.arange(8) / 25))
    assert found.values["hkc"] is None and "no keypoint score" in found.reasons["hkc"]
    assert found.values["hkv_std"] == pytest.approx(12 * 512 / 560, rel=0.1)
    assert found.values["hand_presence"] == 0.5
    assert metric.settings["detector"] == "mediapipe hands, IMAGE mode" and "weights_sha256" in metric.settings


def test_a_file_that_is_no_hand_landmarker(tmp_path):
    pytest.importorskip("mediapipe")
    file = tmp_path / "hand_landmarker.task"
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"hand_landmarker\.task"):
        try:
            with MediapipeHands(file).open():
                pass
        except OSError as error:
            pytest.skip(str(error))


def test_a_device_that_is_none(tmp_path):
    (tmp_path / "any.onnx").write_text("a file")
    with pytest.raises(UserError, match="device cannot be used"):
        DwPose(tmp_path / "any.onnx", tmp_path / "any.onnx", device="foo")
