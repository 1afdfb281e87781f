"""Footage of known truth: a real portrait whose mouth is opened by a voice, and files made of such pieces."""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fantasy_core
from fantasy_core.audio import load_voice
from fantasy_core.media import VideoWriter
from fantasy_core.metrics.lip_sync import band_loudness

VOICE = Path(fantasy_core.__file__).parent / "miniature" / "assets" / "voice.flac"
RATE, FPS = 16_000, 25.0
# in the middle of the 224 x 224 that `portrait` cuts out of skimage's astronaut: line between the lips, half width
LIPS, MIDDLE, HALF, CHIN = 111.0, 113.0, 21.0, 42.0


def voice(seconds: float) -> np.ndarray:
    """A real voice of 4.6 s, said again until it fills the time, [n] at 16 kHz."""
    once = load_voice(VOICE).numpy()
    return np.resize(once, round(seconds * RATE))


def portrait() -> Tensor:
    """Eileen Collins, 224 x 224, her mouth in the middle; skipped without scikit-image."""
    import pytest

    picture = pytest.importorskip("skimage.data").astronaut()
    return torch.from_numpy(picture[36:260, 110:334].copy()).movedim(-1, 0).float() / 255


def speaking(picture: Tensor, opening: Iterable[float]) -> Tensor:
    """Frames [T, 3, H, W] of a picture [3, H, W] whose lower lip and chin are drawn down by `opening` pixels, most in
    the middle of the mouth; the gap is dark. What lies below the chin stays."""
    height, width = picture.shape[1:]
    rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()[None]
    shape = (1 - ((columns - MIDDLE) / HALF) ** 2).clamp(min=0).sqrt()
    frames = []
    for pixels in opening:
        down = pixels * shape
        below = rows - LIPS - down
        moved = (below >= 0) & (rows < LIPS + CHIN)
        source = torch.where(moved, LIPS + below / (1 - down / CHIN).clamp(min=0.1), rows + 0 * columns)
        grid = torch.stack([(columns + 0 * rows) * 2 / (width - 1) - 1, source * 2 / (height - 1) - 1], -1)
        frame = F.grid_sample(picture[None], grid[None], align_corners=True)[0]
        gap = ((rows > LIPS) & (below < 0)).float()
        frames.append(frame * (1 - gap) + 0.1 * gap)
    return torch.stack(frames)


def openings(sound: np.ndarray, frames: int, most: float = 11.0) -> np.ndarray:
    """Pixels [frames] by which a mouth opens to a sound: its loudness to the power 0.7, smoothed over three frames."""
    loud = np.exp(band_loudness(sound.astype(np.float64), RATE, FPS, frames))
    return most * np.clip(np.convolve(loud / np.percentile(loud, 95), [0.25, 0.5, 0.25], "same"), 0, 1.3) ** 0.7


def write_footage(path: Path, frames: Tensor, sound: np.ndarray | None, fps: float = FPS) -> Path:
    """An mp4 of frames [T, 3, H, W] and a mono sound at 16 kHz, if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        if sound is not None:
            with wave.open(f"{place}/sound.wav", "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", ""))
                file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
        with VideoWriter(path, fps, sound=None if sound is None else f"{place}/sound.wav") as writer:
            writer.write(frames)
    return path


def write_placed(path: Path, times: np.ndarray, *tracks: np.ndarray, begins: float = 0.0) -> Path:
    """An mkv of grey pictures shown from `times` [T] (whole milliseconds, in seconds) on, whose header says 25 a second
    whatever they are, and of mono tracks of sound at 16 kHz that begin at `begins`; one of no samples has no packet."""
    import av

    with av.open(str(path), "w") as made:
        pictures = made.add_stream("mpeg4", rate=25)
        heard = [made.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in tracks]
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            made.mux(pictures.encode(frame))
        made.mux(pictures.encode(None))
        for stream, sound in zip(heard, tracks, strict=True):
            samples = (np.clip(sound, -1, 1) * 32767).astype(np.int16)[None]
            for start in range(0, samples.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], format="s16", layout="mono")
                piece.sample_rate, piece.pts = RATE, start + round(begins * RATE)
                piece.time_base = Fraction(1, RATE)
                made.mux(stream.encode(piece))
            made.mux(stream.encode(None))
    return path
