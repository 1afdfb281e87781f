"""Lip masks: projection to latents against known truth, rings and gaps by hand, and real faces through mediapipe."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_faces import face
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.lips import (
    CORNERS,
    MESH,
    OUTER_LIPS,
    LipTrack,
    bridge,
    choose,
    in_window,
    landmarker,
    lip_mask,
    mouth_opening,
    polygon_coverage,
    project,
    search,
    size,
    track,
    turned,
)
from fantasy_core.metrics.face_tracks import mediapipe_faces

CACHE = Path.home() / ".cache" / "fantasytalking2"
TASK = Path(os.environ.get("FACE_LANDMARKER_TASK") or CACHE / "face_landmarker.task")


# ---- pixels to latents ----


@pytest.mark.parametrize("frame", range(0, 81))
def test_an_impulse_reaches_its_own_latent_frame_alone(frame):
    """Frame 0 is latent 0 alone; frame k is a quarter of latent ceil(k / 4), as it first reaches Wan's VAE."""
    mask = torch.zeros(81, 8, 16)
    mask[frame] = 1
    latent = project(mask)
    expected = torch.zeros(21)
    expected[math.ceil(frame / 4)] = 1.0 if frame == 0 else 0.25
    assert torch.equal(latent[:, 0, 0], expected) and torch.equal(latent[:, 0, 1], expected)


def test_the_time_of_every_latent_frame():
    """A mask that says the time: 0, then the middles 4i - 1.5 of frames 4i-3..4i. Plain trilinear is up to 2.79 frames
    late; the reference figure of that fault is kept here."""
    ramp = torch.arange(81.0)[:, None, None].expand(-1, 8, 8)
    truth = torch.tensor([0.0, *(4 * i - 1.5 for i in range(1, 21))])
    assert torch.equal(project(ramp)[:, 0, 0], truth)
    late = (project(ramp, mode="trilinear")[:, 0, 0] - truth).max()
    assert late == pytest.approx(2.79, abs=0.01)


@given(top=st.integers(0, 58), left=st.integers(0, 40))
def test_a_closed_mouth_keeps_its_mass(top, left):
    """6 x 24 pixels are 144 / 64 cells wherever they lie; the plain interpolation reads 2 x 2 of every 8 x 8 pixels."""
    mask = torch.zeros(5, 64, 64)
    mask[:, top : top + 6, left : left + 24] = 1
    latent = project(mask)
    assert latent.sum(dim=(1, 2)).tolist() == pytest.approx([144 / 64] * 2)
    assert torch.equal(project(torch.ones(5, 64, 64)), torch.ones(2, 8, 8))


def test_a_closed_mouth_can_be_lost_by_the_papers_wording():
    mask = torch.zeros(5, 64, 64)
    mask[:, 16:19] = 1  # three rows between those that are read
    assert project(mask, mode="trilinear").sum() == 0 and project(mask).sum() > 0


@pytest.mark.parametrize("shape,mode", [((80, 8, 8), "causal"), ((81, 12, 8), "causal"), ((81, 8, 8), "nearest")])
def test_masks_that_do_not_fit(shape, mode):
    with pytest.raises(UserError):
        project(torch.zeros(shape), mode=mode)


# ---- landmarks to pixels ----


@given(x=st.floats(2, 20), y=st.floats(2, 20), width=st.floats(1, 9), height=st.floats(1, 9))
def test_area_of_a_rectangle_at_any_place(x, y, width, height):
    """Counted on a grid of a quarter pixel: each length errs by less than a step."""
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    area = polygon_coverage(corners, 32, 32).sum()
    assert abs(area - width * height) <= 0.25 * (width + height) + 0.25**2


def test_polygons_that_lean_and_leave_the_picture():
    """A diamond has half its box's area; one cut by the picture's corner keeps a quarter; outside is nothing."""
    diamond = np.array([[0, -8.0], [8, 0], [0, 8], [-8, 0]])
    assert polygon_coverage(diamond + 16, 32, 32).sum() == pytest.approx(128, rel=0.01)
    assert polygon_coverage(diamond, 32, 32).sum() == pytest.approx(32, abs=1.5)
    assert not polygon_coverage(diamond - 50, 32, 32).any()


def test_the_mask_of_a_mouth():
    """The lips are an ellipse of half axes 10 and 4: area 10 * 4 * pi less what the ring of 20 corners cuts off, 1.6 %;
    grown by a quarter of half the mouth's width, 2.5 pixels on every side: 12.5 * 6.5 * pi."""
    assert np.linalg.norm(np.subtract(*(face()[c] for c in CORNERS))) == pytest.approx(20)
    ellipse = math.sin(math.pi / 10) / (math.pi / 10)
    assert lip_mask(face(), 128, 128, dilate=0).sum() == pytest.approx(40 * math.pi * ellipse, rel=0.01)
    assert lip_mask(face(), 128, 128).sum() == pytest.approx(12.5 * 6.5 * math.pi * ellipse, rel=0.01)


def test_opening_and_turn():
    """A gap of 3 pixels over eyes 20 apart; a nose three quarters of the way to the cheek's end."""
    assert mouth_opening(face(opening=3.0)) == pytest.approx(0.15)
    assert turned(face()) == 0 and turned(face(nose=0.75)) == pytest.approx(0.75)


# ---- a face through a video ----


def test_gaps_are_bridged_in_straight_lines():
    """Seen at 2, 5 and 12: frames 3, 4 lie a third and two thirds between; the gap of six stays; the first holds back
    to 0, the last on to 16 and no further."""
    seen = np.zeros(20, bool)
    seen[[2, 5, 12]] = True
    places = np.full((20, 3, 2), np.nan)
    for frame, value in ((2, 1.0), (5, 4.0), (12, 10.0)):
        places[frame] = value
    filled, _, there = bridge(places, seen, longest=5)
    expected = [1, 1, 1, 2, 3, 4, *[None] * 6, *[10] * 6, None, None]
    assert [None if np.isnan(p).any() else p[0, 0] for p in filled] == pytest.approx(expected)
    assert there.tolist() == [value is not None for value in expected] and np.isnan(places[3]).all()


def test_which_face_is_followed():
    """The largest first; then the one whose mouth is nearest, and none that is further away than a face's size."""
    small, large, far = face(30, 30, 8), face(90, 60, 20), face(300, 60, 40)
    assert choose([small, large], None) is large and choose([], None) is None
    assert choose([small, far, large], face(85, 62, 20)) is large
    assert choose([far], large) is None
    assert size(large) == pytest.approx(40, rel=0.1)


class Marker:
    """Finds a bright square, as the drawn face that stands for it: known truth for `track`."""

    def __init__(self, smallest: int = 2):
        self.smallest = smallest

    def __call__(self, frame: np.ndarray) -> list[np.ndarray]:
        rows, columns = np.nonzero(frame[..., 0] > 128)
        if not len(rows) or np.ptp(rows) + 1 < self.smallest:
            return []
        return [face((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2, np.ptp(rows) + 1)]


def frame_with(x: int | None, side: int = 16) -> np.ndarray:
    frame = np.zeros((120, 200, 3), np.uint8)
    if x is not None:
        frame[50 : 50 + side, x : x + side] = 255
    return frame


def test_a_face_is_followed_and_found_again():
    """It moves three pixels a frame, is gone for three frames, and comes back: where it was drawn to half a pixel."""
    xs = [None if 4 <= i < 7 else 30 + 3 * i for i in range(12)]
    found = track([frame_with(x) for x in xs], Marker())
    assert found.seen.tolist() == [x is not None for x in xs] and found.filled.all()
    centres = found.landmarks[:, :MESH].mean(1)[:, 0] - face(0, 0, 16)[:MESH].mean(0)[0]
    assert np.abs(centres - [38 + 3 * i for i in range(12)]).max() < 0.75
    assert (
        found.masks(120, 200).shape == (12, 120, 200)
        and found.unusable == "a face in 75% of the frames, 80% are needed"
    )


def test_small_faces_need_the_search_in_windows():
    """A marker of 10 pixels, for a detector that sees none below 16: found in a window that shows it larger."""
    frame = frame_with(40, side=10)
    assert search(frame, Marker(16), None) == []
    (found,) = search(frame, Marker(16), Marker(16), smallest=24)[:1]
    assert found[:MESH].mean(0) == pytest.approx(face(45, 55, 10)[:MESH].mean(0), abs=1.0)
    (seen,) = in_window(Marker(), frame, 20, 30, 60, work=120)
    assert seen[:MESH].mean(0) == pytest.approx(face(45, 55, 10)[:MESH].mean(0), abs=1.0)


def test_videos_that_cannot_be_compared_by_their_lips():
    everywhere = np.ones(10, bool)
    profile = LipTrack(np.stack([face(nose=0.95)] * 10), everywhere, everywhere)
    assert "profile" in profile.unusable
    assert LipTrack(np.stack([face()] * 10), everywhere, everywhere).unusable is None
    nobody = track([frame_with(None)] * 3, Marker())
    assert "0%" in nobody.unusable and not nobody.masks(16, 16).any() and np.isnan(nobody.openings).all()


# ---- real faces ----


@pytest.fixture(scope="module")
def detectors():
    """mediapipe's, at 0.5 and 0.9; skipped with what is missing."""
    if not TASK.is_file():
        pytest.skip(f"no face_landmarker.task at {TASK}; set FACE_LANDMARKER_TASK")
    try:
        import mediapipe  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"mediapipe cannot be imported ({error}); Debian and Ubuntu: apt install libegl1 libgles2")
    with landmarker(TASK) as detect, landmarker(TASK, confidence=0.9) as strict:
        yield detect, strict


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


def test_a_real_portrait(detectors, astronaut):
    """Eileen Collins smiles with parted lips, nearly frontal; her mouth lies at rows 130 to 165, columns 190 to 255."""
    (found,) = detectors[0](astronaut)
    assert abs(turned(found)) < 0.1 and 0.08 < mouth_opening(found) < 0.16 and 95 < size(found) < 120
    mask = lip_mask(found, 512, 512)
    rows, columns = np.nonzero(mask > 0.5)
    assert 128 < rows.min() < rows.max() < 168 and 190 < columns.min() < columns.max() < 258
    assert 0.002 < mask.mean() < 0.005


def test_a_box_around_a_real_face(detectors, astronaut):
    """By eye her face lies at columns 181 to 271, rows 72 (the hairline) to 177 (the chin)."""
    with mediapipe_faces(TASK) as faces:
        (box,) = faces(astronaut)
        assert faces(np.zeros_like(astronaut)) == []
    assert np.abs(np.subtract(box, (181, 72, 271, 177))).max() < 12


def test_a_real_face_that_moves_is_missing_and_small(detectors, astronaut):
    """Shifted by 4 pixels a frame, two frames grey: the track moves as much, the gap is bridged. At 50 pixels in a wide
    picture it is found in windows only; a cat has no face at any size."""
    detect, strict = detectors
    frames = [np.roll(astronaut, 4 * i, axis=1) if i not in (3, 4) else np.full_like(astronaut, 127) for i in range(7)]
    found = track(frames, detect, strict)
    assert found.seen.tolist() == [True] * 3 + [False] * 2 + [True] * 2 and found.filled.all()
    moved = np.diff(found.landmarks[:, OUTER_LIPS, 0].mean(1))
    assert np.abs(moved - 4).max() < 1.0
    wide = np.full((480, 832, 3), 128, np.uint8)
    image = torch.from_numpy(astronaut).movedim(-1, 0)[None].float()
    wide[100:340, 400:640] = torch.nn.functional.interpolate(image, (240, 240), mode="area")[0].movedim(0, -1).numpy()
    assert detect(wide) == [] and len(search(wide, detect, strict)) == 1
    assert search(pytest.importorskip("skimage.data").cat(), detect, strict) == []


def test_without_a_model_the_remedy_is_named(monkeypatch):
    mediapipe = pytest.importorskip("mediapipe")
    if hasattr(mediapipe, "solutions"):
        pytest.skip("this mediapipe brings its models")
    with pytest.raises(UserError, match="face_landmarker.task"), landmarker():
        pass
    with pytest.raises(UserError, match="nowhere"), landmarker("nowhere.task"):
        pass


def test_a_file_that_is_no_landmarker_is_refused(tmp_path):
    pytest.importorskip("mediapipe")
    (tmp_path / "face.task").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"face\.task cannot be opened"), landmarker(tmp_path / "face.task"):
        pass
