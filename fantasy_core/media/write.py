"""Frames and sound streamed into an mp4 (PyAV); sound alone as wav."""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import broken, part_of, writing
from .images import to_bytes
from .read import rational, read_audio

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LEVELS = 32767  # of a 16 bit sample


def write_wav(path: Path, samples: np.ndarray, rate: int) -> bytes:
    """Write samples [n] or [channels, n] in -1..1 as 16 bit wav; the samples as they are in it, channels in turn."""
    channels = np.atleast_2d(samples)
    data = (channels.T.clip(-1, 1) * LEVELS).round().astype("<i2").tobytes()
    with writing(path), path.open("wb") as file, wave.open(file, "wb") as writer:
        writer.setnchannels(len(channels))
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(data)
    return data


class VideoWriter:
    """Stream frames into an mp4: H.264 (yuv420p, BT.709), AAC, settings as JSON in the `comment` tag.

    A context manager. Frame k is shown at k / fps exactly. `sound` is any file with a sound track; its first sound goes
    with frame 0, at its own rate, mono or stereo as it is, cut to the length of the frames. The file appears under its
    name when all is written; an error or Ctrl-C leaves nothing behind. Faults of `path` and `sound` raise UserError on
    entry, before anything is computed.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float | Fraction,
        *,
        sound: str | Path | None = None,
        settings: dict | None = None,
        crf: int = 18,
    ):
        self.path, self.fps, self.crf, self.frames = Path(path), rational(fps), crf, 0
        self._source, self._settings = sound, settings or {}
        self._video: Any = None  # opened by the first frames, whose size it needs
        self._audio: Any = None

    def __enter__(self) -> VideoWriter:
        import av

        self._sound = None if self._source is None else _Sound(self._source)
        self._part = part_of(self.path)
        with writing(self.path):
            self._file = self._part.open("wb")
        self._container = av.open(self._file, "w", format="mp4")
        self._container.metadata["comment"] = json.dumps(self._settings, default=str, ensure_ascii=False)
        return self

    def write(self, frames: Tensor) -> None:
        """Append `frames` [t, 3, H, W] in [0, 1], even sides; the sound follows to the same moment."""
        import av

        if not torch.isfinite(frames).all():
            raise UserError(
                "a frame is not a picture",
                got="NaN or infinite pixels",
                expected="values from 0 to 1",
                do="try --dtype bf16",
            )
        if self._video is None:
            self._open_streams(*frames.shape[:1:-1])
        with writing(self.path):
            for picture in to_bytes(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace="ITU709"
                )
                frame.pts, frame.time_base = self.frames, 1 / self.fps
                self._container.mux(self._video.encode(frame))
                self.frames += 1
            if self._sound is not None:
                for sound in self._sound.until(self.frames / self.fps):
                    self._container.mux(self._audio.encode(sound))

    def _open_streams(self, width: int, height: int) -> None:
        self._video = self._container.add_stream("libx264", rate=self.fps, options={"crf": str(self.crf)})
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.time_base = 1 / self.fps
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, and say so
        context.color_range = 1  # 16..235
        if self._sound is not None:
            rate = self._sound.rate if self._sound.rate in AAC_RATES else 48_000
            self._audio = self._container.add_stream("aac", rate=rate, layout=self._sound.layout)
            self._audio.bit_rate = 192_000

    def __exit__(self, kind, error, trace) -> None:
        try:
            with writing(self.path) if kind is None else suppress(Exception):
                if kind is None:
                    self._finish()
                self._container.close()
                self._file.close()
                if kind is None:
                    os.replace(self._part, self.path)
        finally:
            with suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._video is None:
            raise ValueError("no frame was written")
        for stream in filter(None, (self._video, self._audio)):
            self._container.mux(stream.encode(None))


class _Sound:
    """A sound track handed out piece by piece, as far as the picture has come."""

    def __init__(self, path: str | Path):
        import av

        self._new_frame = av.AudioFrame.from_ndarray
        self._chunks = read_audio(path)
        self.rate, self._rest = next(self._chunks, (0, np.zeros((0, 0), np.float32)))
        if self._rest.shape[0] > 8:  # no layout has names for so many: all of them, alike
            self._chunks = ((rate, sound.mean(0, keepdims=True)) for rate, sound in read_audio(path))
            self.rate, self._rest = next(self._chunks)
        elif self._rest.shape[0] > 2:
            self._chunks = read_audio(path, "stereo")
            self.rate, self._rest = next(self._chunks)
        if not self.rate:
            raise broken(Path(path), "audio", "no sound that can be decoded")
        self.layout = "mono" if self._rest.shape[0] == 1 else "stereo"
        self._given = 0

    def until(self, seconds: Fraction) -> Iterator:
        """The audio frames from where the last call ended to `seconds`, less where the track ends earlier."""
        goal = round(seconds * self.rate)
        while self._given < goal:
            if not self._rest.shape[1]:
                _, self._rest = next(self._chunks, (0, self._rest))
                if not self._rest.shape[1]:
                    return
            piece, self._rest = np.split(self._rest, [goal - self._given], axis=1)
            piece = np.ascontiguousarray(piece.clip(-1, 1))  # floats may be louder; the encoder hangs on huge ones
            frame = self._new_frame(piece, format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, self._given, Fraction(1, self.rate)
            self._given += piece.shape[1]
            yield frame
