"""Video and sound: real encoders, real files, every fault of a file in four parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sounds import click, encode, onset, whole

from fantasy_core.errors import UserError
from fantasy_core.media import VideoWriter, rational, read_audio, read_video, replacing, video_seconds

ROOT = Path(__file__).resolve().parents[1]
AUDIO_FRAME = 1024  # samples of an AAC frame


# ---- reading sound and video


def test_late_sound_begins_with_silence(tmp_path):
    """A track that starts 0.5 s after the picture: its click at 0.2 s is heard 0.7 s into the video."""
    path = encode(tmp_path / "late.mkv", click(0.2, 48000, 1), 48000, "pcm_s16le", offset=24000, picture=True)
    sound, rate = whole(path)
    assert abs(onset(sound) - 0.7 * rate) <= 48  # matroska stamps milliseconds


def test_sound_before_the_picture_is_no_damage(tmp_path):
    """A picture that comes half a second after the sound, as cutting a stream leaves it: 2.5 s of 3 are heard, from the
    click at 0.7 s on at 0.2, and nothing was cut off. Without lengths of its tracks (mkv) a file states 3 s: the
    picture lasts from its first frame to the end of its last, 1 s."""
    plain = encode(tmp_path / "plain.mp4", click(0.7, 48000, 3), 48000, "aac", picture=True)
    for name in ("late.mp4", "late.mkv"):
        path = delayed(plain, tmp_path / name, 0.5)
        sound, rate = whole(path)
        assert abs(onset(sound) - 0.2 * rate) <= AUDIO_FRAME and sound.shape[1] / rate == pytest.approx(2.5, abs=0.05)
        assert video_seconds(path) == pytest.approx(1.0, abs=0.05)


def delayed(source: Path, path: Path, late: float) -> Path:
    """The same packets, those of the picture `late` seconds later."""
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        streams = {one: made.add_stream_from_template(one) for one in given.streams}
        for packet in given.demux():
            if packet.dts is None:
                continue
            shift = round(late / packet.time_base) if packet.stream.type == "video" else 0
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, streams[packet.stream]
            made.mux(packet)
    return path


def test_no_sound(tmp_path):
    with VideoWriter(tmp_path / "mute.mp4", 10) as writer:
        writer.write(torch.zeros(5, 3, 32, 32))
    with pytest.raises(UserError, match="without an audio stream"):
        list(read_audio(tmp_path / "mute.mp4"))


@pytest.mark.parametrize(
    "name, codec", [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac")]
)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_cut_sound_is_refused(tmp_path, name, codec, part):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 44100 * 2))
    path = encode(tmp_path / name, noise, 44100, codec)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UserError) as caught:
        list(read_audio(path))
    assert str(path) in caught.value.what and caught.value.got and caught.value.expected and caught.value.do


def test_cut_video_is_refused(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", 10) as writer:
        writer.write(torch.rand(20, 3, 32, 32))
    path = tmp_path / "v.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot read the video"):
        list(read_video(path))


def test_junk_before_mp3_is_skipped(tmp_path):
    """A file cut out of a stream begins in the middle of a frame: players skip to the next, and so do we."""
    path = encode(tmp_path / "a.mp3", click(0.5, 44100, 2), 44100, "libmp3lame")
    path.write_bytes(bytes(range(256)) + path.read_bytes()[1500:])
    assert whole(path)[0].shape[1] > 44100


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(min_size=1, max_size=300),
    head=st.sampled_from([b"", b"RIFF", b"fLaC", b"ID3", b"\xff\xfb", b"OggS"]),
)
def test_random_bytes_are_no_sound(tmp_path, data, head):
    """Either refused in four parts or (a few bytes can be an mp3 frame) decoded; never another exception."""
    path = tmp_path / "noise"
    path.write_bytes(head + data)
    try:
        pieces = list(read_audio(path))
    except UserError as error:
        assert str(path) in error.what
    else:
        assert all(rate > 0 and sound.ndim == 2 for rate, sound in pieces)


def test_playlist_may_not_lead_elsewhere(tmp_path):
    """Nothing is downloaded: an HLS playlist that names an address on the network is refused."""
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError):
        list(read_audio(path))


# ---- writing


@pytest.mark.parametrize("fps", [23, 29.97, Fraction(30000, 1001), 12.5])
def test_frames_come_back_at_k_over_fps(tmp_path, fps):
    """Frame k is stamped k / fps exactly; colours survive yuv420p within 3 of 255 when frames are flat."""
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.2, 0.6, 0.9], [1, 1, 0]])
    frames = colours[:, :, None, None].expand(-1, 3, 32, 48)
    with VideoWriter(tmp_path / "v.mp4", fps, settings={"seed": 7, "prompt": "é\n"}) as writer:
        writer.write(frames[:3])
        writer.write(frames[3:])
    seen = list(read_video(tmp_path / "v.mp4"))
    assert len(seen) == 7
    for k, (time, frame) in enumerate(seen):
        assert time == float(k / rational(fps))
        assert frame.shape == (3, 32, 48) and (frame - frames[k]).abs().max() <= 3 / 255
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == {"seed": 7, "prompt": "é\n"}
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("rate, channels", [(44100, 2), (16000, 1), (8000, 1), (22254, 1), (96000, 2), (48000, 6)])
def test_sound_is_aligned_within_one_audio_frame(tmp_path, rate, channels):
    """A click 1.3 s into the source is heard 1.3 s into the video (AAC priming undone), at the source's rate where AAC
    has it (22254 Hz becomes 48 kHz), mono or stereo as it was; the sound ends with the frames: 41 at 23 fps, 1.78 s."""
    source = encode(tmp_path / "a.wav", click(1.3, rate, 3, channels), rate)
    with VideoWriter(tmp_path / "v.mp4", 23, sound=source) as writer:
        for _ in range(41):
            writer.write(torch.zeros(1, 3, 16, 16))
    sound, got_rate = whole(tmp_path / "v.mp4")
    assert got_rate == (48000 if rate == 22254 else rate) and sound.shape[0] == min(channels, 2)
    assert abs(onset(sound) - 1.3 * got_rate) <= AUDIO_FRAME
    assert abs(sound.shape[1] - 41 / 23 * got_rate) <= AUDIO_FRAME


@pytest.mark.parametrize("name, codec", [("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac")])
def test_sound_of_any_format_is_aligned(tmp_path, name, codec):
    source = encode(tmp_path / name, click(0.7, 44100, 1.5, 2), 44100, codec)
    with VideoWriter(tmp_path / "v.mp4", Fraction(30000, 1001), sound=source) as writer:
        writer.write(torch.zeros(33, 3, 16, 16))
    assert abs(onset(whole(tmp_path / "v.mp4")[0]) - 0.7 * 44100) <= AUDIO_FRAME


def test_no_drift_in_the_last_second(tmp_path):
    """Clicks every ten seconds of a minute at 29.97 fps: the last is as well placed as the first."""
    rate = 16000
    long = np.concatenate([click(0.5, rate, 10)] * 6, axis=1)
    with VideoWriter(tmp_path / "v.mp4", 29.97, sound=encode(tmp_path / "a.wav", long, rate)) as writer:
        for _ in range(60):
            writer.write(torch.zeros(30, 3, 16, 16))
    loud = np.abs(whole(tmp_path / "v.mp4")[0][0]) > 0.3
    for minute_part in range(6):
        start = minute_part * 10 * rate
        assert abs(int(np.argmax(loud[start : start + 10 * rate])) - rate // 2) <= AUDIO_FRAME


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(tmp_path, fault):
    (tmp_path / "v.mp4").write_text("old")
    with pytest.raises(fault), VideoWriter(tmp_path / "v.mp4", 23) as writer:
        writer.write(torch.zeros(5, 3, 32, 32))
        raise fault
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"] and (tmp_path / "v.mp4").read_text() == "old"
    with pytest.raises(fault), replacing(tmp_path / "x.png") as part:
        part.write_text("half")
        raise fault
    assert not (tmp_path / "x.png").exists() and len(list(tmp_path.iterdir())) == 1


def test_errors_of_others_pass_through(tmp_path):
    """An OSError from the work between two writes is not blamed on the video."""
    with pytest.raises(FileNotFoundError), VideoWriter(tmp_path / "v.mp4", 23):
        (tmp_path / "weights").read_bytes()


def test_faults_before_the_work(tmp_path):
    for path, sound in [(tmp_path / "no" / "v.mp4", None), (tmp_path / "v.mp4", tmp_path / "no.wav")]:
        with pytest.raises(UserError), VideoWriter(path, 23, sound=sound):
            pytest.fail("the work has begun")
    with pytest.raises(UserError, match="frame rate"):
        VideoWriter(tmp_path / "v.mp4", float("nan"))
    assert not list(tmp_path.iterdir())


def test_nan_frames(tmp_path):
    with pytest.raises(UserError, match="NaN"), VideoWriter(tmp_path / "v.mp4", 23) as writer:
        writer.write(torch.full((1, 3, 16, 16), float("nan")))
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from fantasy_core.errors import report
from fantasy_core.media import VideoWriter

path, frames = Path(sys.argv[1]), torch.rand(20, 3, 32, 32)

def work():
    with VideoWriter(path, 23) as writer:
        writer.write(frames[:10])
        writer.write(frames[10:])

assert report(work) == 0
size = path.stat().st_size
path.unlink()
for share in (0, 0.3, 0.99):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), resource.RLIM_INFINITY))
    assert report(work) == 2, share
    assert not list(path.parent.iterdir()), share
"""


def test_full_disk(tmp_path):
    """RLIMIT_FSIZE stops the file at once, in the middle and in its last hundredth (the index of an mp4 comes last):
    three errors in four parts with exit code 2, and never a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "v.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: cannot write") == done.stderr.count("File too large") == 3
