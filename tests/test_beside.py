"""Videos side by side: every frame beside its partner, with the first's sound; what does not go together is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sounds import encode

from fantasy_core import beside
from fantasy_core.media import VideoWriter, read_audio, read_video


def write(path, level: float, frames: int = 9, fps: float = 23, sound=None):
    with VideoWriter(path, fps, sound=sound) as writer:
        writer.write(torch.full((frames, 3, 64, 64), level))
    return str(path)


def test_two_videos_become_one_twice_as_wide(tmp_path):
    """Black beside white, nine frames and seven: seven frames of 128 x 64, left half black, right half white, at 23
    frames a second, and the sound of the first."""
    tone = np.sin(np.arange(16000) / 16000 * 2 * np.pi * 440).astype(np.float32)
    sound = tmp_path / "tone.wav"
    encode(sound, tone[None], 16000)
    videos = [write(tmp_path / "a.mp4", 0.0, sound=sound), write(tmp_path / "b.mp4", 1.0, frames=7)]
    out = tmp_path / "both.mp4"
    assert beside.main([*videos, "--out", str(out)]) == 0
    times, frames = zip(*read_video(out), strict=True)
    assert len(frames) == 7 and frames[0].shape == (3, 64, 128)
    assert times[-1] == pytest.approx(6 / 23, abs=1e-3)
    for frame in frames:
        assert frame[:, :, :60].max() < 0.03 and frame[:, :, 68:].min() > 0.97
    assert sum(np.abs(piece).sum() for _, piece in read_audio(out)) > 100


def test_silent_videos_have_no_sound(tmp_path):
    videos = [write(tmp_path / f"{n}.mp4", n / 2) for n in range(3)]
    assert beside.main([*videos, "--out", str(tmp_path / "all.mp4")]) == 0
    assert next(read_video(tmp_path / "all.mp4"))[1].shape == (3, 64, 192)


def test_videos_that_do_not_go_together(tmp_path, capsys):
    videos = [write(tmp_path / "a.mp4", 0.0), write(tmp_path / "b.mp4", 1.0, fps=25)]
    assert beside.main([*videos, "--out", str(tmp_path / "all.mp4")]) == 2
    assert "25 frames a second" in capsys.readouterr().err
    assert not (tmp_path / "all.mp4").exists()
