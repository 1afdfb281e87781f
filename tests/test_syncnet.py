"""Sync-C and Sync-D: published layout and distances, cepstra by their formulas, tracks and crops, planted offsets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Metric, Video
from fantasy_core.metrics.face_tracks import FaceTrack, box_of, crops, smoothed, tracks
from fantasy_core.metrics.mfcc import mfcc, triangles
from fantasy_core.metrics.networks import Network
from fantasy_core.metrics.syncnet import SyncNet, as_int16, verdict
from fantasy_core.metrics.syncnet_model import SyncNetModel, shifted_distances
from tests.planted_weights import layout, planted_file, planted_state
from tests.test_feature_networks import ramp


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return planted_file(SyncNetModel, tmp_path_factory.mktemp("sync") / "syncnet_v2.model")


# ---- network and distances ----


def test_layout_is_the_published_one():
    """Names and shapes of syncnet_python's SyncNetModel, hashed from its own code."""
    state = planted_state(SyncNetModel)
    assert len(state) == 102 and layout(state) == "5319945ef8d6cd36d0878604ac8b4e765ec06d7268b01bc0a98d0b4540dcc58c"


def test_network_computes_what_syncnet_python_does(weights):
    """Three numbers and the spread of both sides are what syncnet_python's network gave."""
    network = Network(SyncNetModel, weights, "SyncNet").open()
    cepstra = torch.sin(torch.arange(260.0)).reshape(1, 1, 13, 20) * 5
    faces = torch.from_numpy(ramp(5, 224, 224)).permute(3, 0, 1, 2)[None].float()
    with torch.inference_mode():
        sound, lips = network.sound(cepstra)[0], network.lips(faces)[0]
    assert sound[[0, 500, 1023]].tolist() == pytest.approx([-3.3473222, 0.70347482, -0.42179465], rel=1e-3)
    assert lips[[0, 500, 1023]].tolist() == pytest.approx([-102.117683, 1.40036440, 8.32097149], rel=1e-3)


def reference_distances(lips: torch.Tensor, sound: torch.Tensor, vshift: int) -> torch.Tensor:
    """The distances as the reference defines them, pair by pair."""
    padded = torch.nn.functional.pad(sound, (0, 0, vshift, vshift))
    rows = []
    for place, row in enumerate(lips):
        others = padded[place : place + 2 * vshift + 1]
        rows.append(torch.nn.functional.pairwise_distance(row.expand_as(others), others))
    return torch.stack(rows)


@pytest.mark.parametrize("windows", [1, 7, 76])
def test_distances_are_the_references(windows):
    lips, sound = torch.randn(2, windows, 64)
    found, there = shifted_distances(lips, sound)
    torch.testing.assert_close(found, reference_distances(lips, sound, 15))
    assert there.sum() == sum(max(windows - abs(k), 0) for k in range(-15, 16))


@pytest.mark.parametrize("late", [-7, 0, 4])
def test_planted_offsets_come_back(late):
    """Lips that are the sound of `late` frames before: the offset is `late`, positive where the voice leads, as in
    `lip_offset`. Sync-D is the mean of the windows that match (1e-6 sqrt(d)) and those whose sound is out of range."""
    sound = torch.randn(100, 64)
    lips = torch.roll(sound, late, 0)
    found = verdict(*shifted_distances(lips, sound))
    assert found.values["sync_offset"] == late
    mean = shifted_distances(lips, sound)[0].mean(0)
    assert found.values["sync_d"] == pytest.approx(float(mean.min()))
    assert found.values["sync_c"] == pytest.approx(float(mean.sort().values[15] - mean.min()))
    if not late:
        assert found.values["sync_d"] == pytest.approx(1e-6 * 64**0.5, rel=1e-3)


def test_valid_pairs_alone_and_when_there_are_none():
    """Zeros beyond the ends are nearer than strangers, so they lower the median: valid pairs give more confidence.
    With 15 windows the outermost shifts have no pair."""
    sound = torch.randn(40, 64)
    found = verdict(*shifted_distances(sound, sound)).values
    assert found["sync_c_valid"] > found["sync_c"] > 0  # pyright: ignore
    few = verdict(*shifted_distances(sound[:15], sound[:15]))
    assert few.values["sync_c_valid"] is None and "15 windows" in few.reasons["sync_c_valid"]


# ---- sound ----


def slow_mfcc(samples: np.ndarray) -> np.ndarray:
    """Cepstra by their definitions, one frame, one filter, one coefficient at a time."""
    hz = [700 * (10 ** (k * 2595 * math.log10(1 + 8000 / 700) / 27 / 2595) - 1) for k in range(28)]
    edges = [math.floor(513 * f / 16000) for f in hz]
    emphasised = [samples[0]] + [samples[k] - 0.97 * samples[k - 1] for k in range(1, len(samples))]
    frames = 1 + math.ceil(max(len(samples) - 400, 0) / 160)
    emphasised += [0.0] * ((frames - 1) * 160 + 400 - len(samples))
    rows = []
    for frame in range(frames):
        power = np.abs(np.fft.fft(emphasised[frame * 160 : frame * 160 + 400], 512)[:257]) ** 2 / 512
        logs = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            up = sum(power[i] * (i - low) / (middle - low) for i in range(low, middle))
            logs.append(math.log(up + sum(power[i] * (high - i) / (high - middle) for i in range(middle, high))))
        row = []
        for order in range(13):
            total = sum(value * math.cos(math.pi * order * (k + 0.5) / 26) for k, value in enumerate(logs))
            lift = 1 + 11 * math.sin(math.pi * order / 22)
            row.append(lift * total * math.sqrt((2 if order else 1) / 26))
        rows.append([math.log(power.sum()), *row[1:]])
    return np.array(rows)


@pytest.mark.parametrize("samples", [100, 400, 401, 1500])
def test_cepstra_by_their_definitions(samples):
    sound = np.round(np.random.default_rng(samples).normal(0, 3000, samples))
    np.testing.assert_allclose(mfcc(sound), slow_mfcc(sound), rtol=1e-9, atol=1e-9)


def test_sound_as_a_wav_file_holds_it():
    """1 is one beyond the largest integer."""
    assert as_int16(np.array([0, 0.5, 1, -1, 1.2e-5], np.float32)).tolist() == [0, 16384, 32767, -32768, 0]


def test_cepstra_of_python_speech_features():
    """Its second frame for 640 samples of round(3000 sin k)."""
    told = [20.504657, -12.677443, -28.480429, 28.578445, 3.272877, -33.484852, 17.464898, 17.159397, -31.395831,
            1.190324, 22.848382, -19.997615, -10.29898]  # fmt: skip
    assert mfcc(np.round(np.sin(np.arange(640)) * 3000))[1].tolist() == pytest.approx(told, abs=2e-6)
    assert np.isfinite(mfcc(np.zeros(2000))).all() and triangles().shape == (26, 257)


# ---- faces ----


def test_tracks_bridge_25_frames_and_tell_faces_apart():
    """Two faces far apart; the left one is missing for frames 3..26 (25 frames from sighting to sighting) and is moved
    by 24 px meanwhile, one a frame; a third face begins 26 frames after the last sighting."""
    left, right = (0.0, 0.0, 100.0, 100.0), (300.0, 0.0, 400.0, 100.0)
    moved = (24.0, 0.0, 124.0, 100.0)
    found = [[left, right]] * 3 + [[right]] * 24 + [[moved, right]] + [[]] * 25 + [[right]]
    a, b, c = tracks(found)
    assert (a.first, a.seen, len(a.boxes)) == (0, 4, 28)
    assert a.boxes[2:, 0] == pytest.approx(np.linspace(0, 24, 26)) and a.size == pytest.approx(100)
    assert (b.seen, len(b.boxes)) == (28, 28) and (c.first, c.seen) == (53, 1)


def test_a_cut_ends_a_track():
    """One box in five frames, a new scene from the third on: two tracks of two and three frames."""
    box = (0.0, 0.0, 100.0, 100.0)
    first, second = tracks([[box]] * 5, np.array([0, 0, 1, 1, 1]))
    assert (first.first, first.seen, second.first, second.seen) == (0, 2, 2, 3)


def test_smoothing_is_scipys():
    from scipy.signal import medfilt

    values = np.random.default_rng(0).uniform(50, 60, 40)
    assert smoothed(values).tolist() == medfilt(values, 13).tolist()


def test_crops_are_where_the_reference_puts_them():
    """A face of 100 px at (150, 100), s = 50: rows 50..190, columns 80..220, 140 px wide. Red falls on the face, the
    picture ends at row 160, so the lower 30 of 140 rows are grey 110; channels come blue first."""
    frames = np.zeros((20, 160, 300, 3), np.uint8)
    frames[:, 50:150, 100:200, 0] = 200
    track = FaceTrack(0, np.tile([100.0, 50.0, 200.0, 150.0], (20, 1)), 20)
    found = crops(frames, track)
    assert found.shape == (20, 3, 224, 224) and found.dtype == torch.uint8
    assert found[10, :, 40, 112].tolist() == [0, 0, 200] and found[10, :, 40, 5].tolist() == [0, 0, 0]
    assert found[10, :, 200, 112].tolist() == [110] * 3  # row 50 + 200 / 224 * 140 = 175
    assert found[10, 2, 0, 112] == 200 and found[10, 2, 100, 29] == 0 and found[10, 2, 100, 35] == 200  # column 100: 32


def talking(frames: int = 70, sound: bool | None = True, fps: float = 25.0) -> Video:
    """Noise, with noise to hear; None: without sound, False: silent."""
    rng = np.random.default_rng(0)
    heard = rng.normal(0, 0.1, int(frames / fps * 16000)).astype(np.float32)
    pictures = rng.integers(0, 256, (frames, 64, 64, 3), np.uint8)
    return Video(Path("a.mp4"), pictures, np.arange(frames) / fps, None if sound is None else heard * sound)


def whole_frame(frame: np.ndarray):
    """A face as large as the frame."""
    return [(0.0, 0.0, float(frame.shape[1]), float(frame.shape[0]))]


def make(weights, faces=whole_frame, **told) -> SyncNet:
    return SyncNet(weights, faces=faces, **({"min_face": 50, "min_track": 8, "batch": 3} | told))


def test_a_video_is_measured_from_end_to_end(weights):
    """11 frames of 23 a second last 11.96 frames of 25: 11 of them, less a window of 5, are 6 comparisons. Each is the
    frame shown in the middle of its 1/25 s. The numbers are those of the network by hand."""
    video, metric = talking(11, fps=23.0), make(weights)
    found = metric.measure(video)
    network = Network(SyncNetModel, weights, "SyncNet").open()
    taken = np.searchsorted(video.times, (np.arange(11) + 0.5) / 25, side="right") - 1
    faces = crops(video.frames[taken], FaceTrack(0, np.tile([0.0, 0.0, 64.0, 64.0], (11, 1)), 11)).float()
    assert video.sound is not None
    cepstra = torch.from_numpy(mfcc(np.round(video.sound[: 11 * 640].astype(np.float64) * 32768))).float()
    with torch.inference_mode():
        lips = torch.cat([network.lips(faces[k : k + 5].movedim(0, 1)[None]) for k in range(6)])
        sound = torch.cat([network.sound(cepstra[4 * k : 4 * k + 20].T[None, None]) for k in range(6)])
        embedded = metric._embedded(faces.byte(), video.sound[: 11 * 640], 6)
    torch.testing.assert_close(embedded[0], lips, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(embedded[1], sound, rtol=1e-4, atol=1e-4)
    mean = reference_distances(lips, sound, 15).mean(0)
    assert found.values["sync_d"] == pytest.approx(float(mean.min()), rel=1e-4)
    assert found.values["sync_c"] == pytest.approx(float(mean.median() - mean.min()), rel=1e-3, abs=1e-4)
    assert found.values["sync_c_valid"] is None and set(found.values) == set(metric.columns)


def test_pictures_of_another_rate_do_not_lag(weights):
    """A frame of 23 fps that is shown in the middle of 1/25 s began 1/46 s before that on average: -1.7 ms against the
    sound. What is shown at its beginning would lag by 21.7 ms, half a frame, which is an offset of its own."""
    seen = []

    def noted(frame: np.ndarray):
        seen.append(int(frame[0, 0, 0]))
        return whole_frame(frame)

    video = talking(92, fps=23.0)
    video.frames[:, 0, 0, 0] = np.arange(92)
    found = make(weights, faces=noted)
    found.measure(video)
    lag = video.times[seen] - np.arange(len(seen)) / 25
    assert len(seen) == 100 and lag.mean() == pytest.approx(0.5 / 25 - 0.5 / 23, abs=1e-3)
    assert found.settings["moment"] == 0.5


def test_what_cannot_be_judged_is_named(weights):
    metric = make(weights)
    for video, why in (
        (talking(sound=None), "no sound track"),
        (talking(sound=False), "silence"),
        (talking(1), "single picture"),
        (talking(8), "at best 8 frames"),
    ):
        with pytest.raises(UserError, match=why):
            metric.measure(video)
    with pytest.raises(UserError, match="shows no face"):
        make(weights, faces=lambda frame: []).measure(talking(20))
    with pytest.raises(UserError, match="64 px"):
        make(weights, min_face=64).measure(talking(20))
    short = talking(20)
    assert short.sound is not None
    with pytest.raises(UserError, match="too little sound"):
        metric.measure(Video(short.path, short.frames, short.times, short.sound[: 5 * 640]))


def test_settings_name_detector_weights_and_track(weights, tmp_path):
    metric = make(weights, faces_name="drawn")
    assert isinstance(metric, Metric) and not metric.verified and set(metric.better) == set(metric.columns)
    assert (metric.settings["faces"], metric.settings["min_track"]) == ("drawn", 8)
    assert make(weights).settings["faces"] == "whole_frame" and SyncNet(weights).settings["min_track"] == 50
    assert len(str(metric.settings["weights_sha256"])) == 64
    with pytest.raises(UserError, match="S3FD needs its weights"):
        SyncNet(weights, faces="s3fd")
    face_model = tmp_path / "sfd_face.pth"
    face_model.write_bytes(b"abc")
    assert str(SyncNet(weights, faces="s3fd", face_model=face_model).settings["face_weights_sha256"])[:8] == "ba7816bf"
    with pytest.raises(UserError, match="unknown face detector"):
        SyncNet(weights, faces="dlib")
    with pytest.raises(UserError, match="min_track"):
        SyncNet(weights, min_track=4)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.model")
    with pytest.raises(UserError, match="not a complete"):
        SyncNet(tmp_path / "other.model")


def test_boxes_are_around_the_mesh():
    """Irises lie beyond point 468 and do not widen the box."""
    mesh = np.tile([[50.0, 60.0]], (478, 1))
    mesh[0], mesh[1], mesh[470] = (10, 20), (90, 120), (500, 500)
    assert box_of(mesh) == (10, 20, 90, 120)
