"""Where footage is cut and what makes a clip: planted cuts, times, voices, faces and boxes, all worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.lips import LipTrack
from fantasy_core.media.cuts import cuts, differences
from train.clip_rules import Faces, crop_box, face_fault, fitted, follow, voiced, voiced_share
from train.footage import in_folder, in_table, located
from train.journal import Journal
from train.scenes import Span, at_times, scenes, spans

RATE = 8000


# ---- scenes ----


def test_a_cut_is_sudden_and_large():
    """Grey levels 0.2 for five frames, then 0.5: a difference of 0.3 at frame 5, none elsewhere."""
    levels = [0.2] * 5 + [0.5] * 5
    times, found = differences((i / 25, torch.full((3, 40, 80), level)) for i, level in enumerate(levels))
    assert times == pytest.approx(np.arange(10) / 25)
    assert found == pytest.approx([0, 0, 0, 0, 0, 0.3, 0, 0, 0, 0], abs=1e-6)
    assert cuts(found, 0.1) == [5] and cuts(found, 0.31) == []


def test_a_fast_pan_is_no_cut():
    """Every frame differs by 0.12: above the threshold but usual here; 0.37 is more than three times as much."""
    pan = np.full(40, 0.12)
    pan[0] = 0
    assert cuts(pan, 0.1) == []
    pan[20] = 0.37
    assert cuts(pan, 0.1) == [20]


def test_scenes_end_where_the_next_begins_and_the_last_lasts_a_frame_more():
    times = np.array([0.0, 0.04, 0.08, 0.12, 0.16])
    assert scenes(times, [2]) == [(0.0, 0.08), (0.08, pytest.approx(0.20))]


def test_spans_by_hand():
    """At 10 fps: a scene of 4.6 s has 46 frames: clips of 21 and 21, 4 left, too few. One of 3.5 s: 21, then 14, of
    which 13 are 4k + 1. One of half a second is too short."""
    kept, short = spans([(0.0, 4.6), (4.6, 8.1), (8.1, 8.6)], 10.0, 21, 9)
    assert kept == [Span(0.0, 21, 0), Span(2.1, 21, 0), Span(4.6, 21, 1), Span(pytest.approx(6.7), 13, 1)]
    assert [(span.frames, span.scene) for span in short] == [(4, 0), (1, 1), (5, 2)]


@given(start=st.floats(0, 100), seconds=st.floats(0, 20), fps=st.sampled_from([23.0, 25.0, 29.97]))
def test_no_time_is_lost_and_no_span_leaves_its_scene(start, seconds, fps):
    kept, short = spans([(start, start + seconds)], fps, 81, 49)
    assert sum(span.frames for span in kept + short) == int(seconds * fps + 1e-6)
    assert all(span.frames % 4 == 1 and 49 <= span.frames <= 81 for span in kept)
    assert all(start <= time < start + seconds for span in kept for time in span.times(fps))


def test_frames_by_time():
    """25 to 23 a second: frame k of the new ones is nearest to old frame round(k * 25 / 23), or the last there is."""
    old = [(i / 25, i) for i in range(26)]
    new = list(at_times(old, [k / 23 for k in range(25)], 23.0))
    assert new == [min(round(k * 25 / 23), 25) for k in range(25)]


def test_a_slow_source_holds_and_never_looks_across_a_cut():
    """Frames at 0 and 0.2 s, wanted every tenth at 10 fps: at 0.1 both are as near and the one on show stays; at 0.16
    the next is 0.04 away, less than half a frame."""
    assert list(at_times([(0.0, "a"), (0.2, "b")], [0.0, 0.1, 0.16, 0.2, 0.9], 10.0)) == ["a", "a", "b", "b", "b"]
    assert list(at_times([(0.0, "a"), (0.2, "b")], [0.14], 10.0)) == ["a"]


# ---- voice ----


def bursts(pattern: list[tuple[float, float]]) -> np.ndarray:
    """(seconds, amplitude) of a 440 Hz tone, one after the other."""
    level = np.concatenate([np.full(round(seconds * RATE), amplitude) for seconds, amplitude in pattern])
    return level * np.sin(2 * np.pi * 440 * np.arange(len(level)) / RATE)


def test_voice_is_what_stands_out_of_the_floor():
    """A second of tone and a second of quiet, in turn: half the moments; the share of the third second is all."""
    moments = voiced(bursts([(1, 0.3), (1, 0.003)] * 3), RATE)
    assert len(moments) == 300 and moments.sum() == 150
    assert voiced_share(moments, 2.0, 1.0) == 1 and voiced_share(moments, 1.0, 2.0) == pytest.approx(0.5)
    assert voiced_share(moments, 5.5, 2.0) == 0, "no voice behind the end"


def test_short_gaps_belong_to_speech():
    """0.1 s between words is bridged, 0.4 s is not: 0.5 + 0.1 + 0.5 s of the first, 0.5 + 0.5 of the second."""
    quiet = [(2, 0.001)]
    assert voiced(bursts([*quiet, (0.5, 0.3), (0.1, 0.001), (0.5, 0.3)]), RATE).sum() == 55
    assert voiced(bursts([*quiet, (0.5, 0.3), (0.4, 0.001), (0.5, 0.3)]), RATE).sum() == 50


@pytest.mark.parametrize("sound", [np.zeros(RATE), bursts([(3, 0.3)]), bursts([(1, 0.002), (1, 1e-4)]), np.zeros(0)])
def test_silence_and_steady_sounds_are_no_voice(sound):
    """Digital silence; a hum that never stops is its own floor; a tone at -57 dB is too quiet; nothing at all."""
    assert not voiced(sound, RATE).any()


# ---- faces ----


def face(x: float, y: float, width: float, nose: float = 0.0) -> np.ndarray:
    """Points all over a square, its cheeks at the sides, the nose `nose` of the way from the middle to the right."""
    grid = np.linspace(-width / 2, width / 2, 22)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)[:478]
    points[234], points[454], points[1] = (-width / 2, 0), (width / 2, 0), (nose * width / 2, 0)
    return points + (x, y)


def faces(width: float = 100, seen: float = 1.0, nose: float = 0.0, others: tuple[float, ...] = (0.0,)) -> Faces:
    there = np.arange(10) < seen * 10
    landmarks = np.stack([face(200, 120, width, nose)] * 10)
    landmarks[~there] = np.nan
    return Faces(LipTrack(landmarks, there, there), list(others))


FAULTS = {
    "one face": (faces(), None),
    "one too narrow": (faces(width=95), "small"),
    "seen too seldom": (faces(seen=0.7), "face"),
    "in profile": (faces(nose=0.95), "face"),
    "nobody": (faces(seen=0.0), "face"),
    "another face in all looks": (faces(others=(0.6,) * 10), "several"),
    "another face in one look of ten": (faces(others=(0.6, *[0.0] * 9)), None),
    "a small one behind": (faces(others=(0.4,) * 10), None),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_rule_that_faces_break(case):
    found, rule = FAULTS[case]
    fault = face_fault(found, 96, 0.5)
    assert fault is None if rule is None else fault[0] == rule


def test_width_and_place_of_a_face():
    found = faces(width=110, seen=0.9)
    assert found.width == pytest.approx(110)
    assert found.centre == pytest.approx((200, 120), abs=3)  # the square's last rows hold no points of the mesh


class Squares:
    """Finds bright squares as faces, as many as there are: known truth."""

    def __call__(self, frame: np.ndarray) -> list[np.ndarray]:
        marks = np.flatnonzero((frame[..., 0] > 128).any(0))
        runs = np.split(marks, np.flatnonzero(np.diff(marks) > 1) + 1) if len(marks) else []
        rows = np.flatnonzero((frame[..., 0] > 128).any(1))
        return [face((run[0] + run[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2, len(run)) for run in runs]


def squares(*places: tuple[int, int]) -> np.ndarray:
    """A picture 120 x 400 with squares of (left, side) in the middle of it."""
    frame = np.zeros((120, 400, 3), np.uint8)
    for left, side in places:
        frame[60 - side // 2 : 60 + side // 2, left : left + side] = 255
    return frame


def test_one_face_is_followed_and_others_are_noticed():
    """A face of 40 and one of 30 pixels, 300 apart: three quarters of its size, in all four looks."""
    found = follow([squares((40, 40), (340, 30))] * 20, 20, (Squares(), Squares()), 96)
    assert found.track.seen.all() and found.width == pytest.approx(40, abs=1) and len(found.seconds) == 4
    assert found.seconds == pytest.approx([0.75] * 4, abs=0.01)
    assert follow([squares((40, 40))] * 7, 7, (Squares(), Squares()), 96).seconds == [0.0, 0.0]


def test_following_ends_where_a_clip_is_lost():
    """Of 20 frames four may be without a face: after the fifth there is no use in going on."""
    drawn = []
    frames = (drawn.append(i) or squares() for i in range(20))
    found = follow(frames, 20, (Squares(), Squares()), 96)
    assert len(drawn) == 5 and face_fault(found, 96, 0.5)[0] == "face"


# ---- pictures ----


def test_boxes_by_hand():
    """1080 rows are 67 x 16 and 8 over, lost above where the face is low; a square out of 1080 x 1920 follows the face
    to the edge; a picture is never enlarged."""
    assert crop_box(1080, 1920, (900, 540), None) == (4, 0, 1072, 1920)
    assert crop_box(1080, 1920, (900, 900), None) == (8, 0, 1072, 1920)
    assert crop_box(1080, 1920, (900, 500), (512, 512)) == (0, 360, 1080, 1080)
    assert crop_box(1080, 1920, (1900, 500), (512, 512)) == (0, 840, 1080, 1080)
    assert crop_box(480, 640, (0, 0), (512, 512)) is None and crop_box(15, 640, (0, 0), None) is None


@settings(max_examples=50)
@given(
    size=st.tuples(st.integers(16, 1200), st.integers(16, 1200)),
    centre=st.tuples(st.floats(0, 1200), st.floats(0, 1200)),
    target=st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda t: (16 * t[0], 16 * t[1])),
)
def test_boxes_lie_inside_and_keep_their_shape(size, centre, target):
    box = crop_box(*size, centre, target)
    if box is None:
        assert target is not None and (target[0] > size[0] or target[1] > size[1])
        return
    top, left, height, width = box
    assert 0 <= top <= top + height <= size[0] and 0 <= left <= left + width <= size[1]
    if target is None:
        assert height % 16 == width % 16 == 0 and size[0] - height < 16 and size[1] - width < 16
    else:
        assert height >= target[0] and width >= target[1]
        assert abs(height - target[0] * width / target[1]) <= 0.5 * (1 + target[0] / target[1])


def test_pictures_are_cut_and_scaled():
    """Columns 0..1 in a ramp over 64: the box of columns 16 to 48, half as large, begins at 17 / 63 (between the first
    two) and rises evenly."""
    frame = torch.linspace(0, 1, 64).expand(3, 32, 64)
    assert torch.equal(fitted(frame, (0, 16, 32, 32), None), frame[:, :, 16:48])
    half = fitted(frame, (0, 16, 32, 32), (16, 16))
    assert half.shape == (3, 16, 16) and half[0, 8, 4:12].diff().numpy() == pytest.approx(np.full(7, 2 / 63), abs=1e-4)


# ---- footage ----


def test_videos_of_a_folder(tmp_path):
    for name in ("b.mp4", "a/c.MOV", "a/notes.txt", ".hidden/d.mp4", "out/clips/e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [one.origin for one in in_folder(tmp_path, tmp_path / "out")] == ["a/c.MOV", "b.mp4"]
    with pytest.raises(UserError, match="no videos"):
        in_folder(tmp_path / "a" / "..", tmp_path)


def test_a_published_table(tmp_path):
    """The layout of OpenHumanVid: paths without suffix behind `clips/`; empty columns at the end; files that are not
    there, and one that is but outside the folder."""
    (tmp_path / "data/part_001/f6").mkdir(parents=True)
    (tmp_path / "data/part_001/f6/f605.mp4").write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    table = tmp_path / "OpenHumanVid_part_001.csv"
    rows = ["f605,clips/part_001/f6/f605,A man speaks.,0.5,,", "aa,clips/part_001/aa,,0.5,,", "s,../secret,,,,"]
    table.write_text("\n".join(["clip_id,path,caption,aesthetic,,", *rows]) + "\n", "utf-8")
    found, absent = in_table(table, tmp_path / "data", "path", "caption")
    assert [(one.origin, one.prompt) for one in found] == [("part_001/f6/f605.mp4", "A man speaks.")]
    assert absent == ["clips/part_001/aa", "../secret"]
    assert located(tmp_path / "data", "") is None
    with pytest.raises(UserError, match="no column file"):
        in_table(table, tmp_path / "data", "file", "caption")
    with pytest.raises(UserError, match="none of the 3 files"):
        in_table(table, tmp_path / "data/part_001/f6", "path", "caption")


def test_a_parquet_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.mp4").write_bytes(b"x")
    parquet.write_table(pyarrow.table({"path": ["a", "b"], "caption": ["A.", None]}), tmp_path / "t.parquet")
    found, absent = in_table(tmp_path / "t.parquet", tmp_path, "path", "caption")
    assert [(one.origin, one.prompt) for one in found] == [("a.mp4", "A.")] and absent == ["b"]


@pytest.mark.parametrize("name,content", [("t.csv", b"\xff\xfe\x00a"), ("gone.csv", None)])
def test_tables_that_cannot_be_read(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot read the table"):
        in_table(tmp_path / name, tmp_path, "path", "caption")


# ---- what is finished, and who does it ----


def test_a_torn_line_of_the_journal_is_cut_off(tmp_path):
    path = tmp_path / "there" / "done.jsonl"
    with Journal(path) as journal:
        journal.append({"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 2')
    assert Journal(path).read() == [{"a": 1}]
    with Journal(path) as again:
        again.append({"a": 3})
        again.append({"a": 4})
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 3, 4]
