"""Video and sound read with PyAV, always placed by their timestamps, one piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import NoSound, UserError
from .files import broken, check_file

LARGEST_HOLE = 60  # seconds of missing sound that are filled with silence; more is a broken file
EXACT_LENGTH = {"wav", "w64", "flac", "aiff", "mov,mp4,m4a,3gp,3g2,mj2"}  # containers whose stated length is exact


def rational(fps: float | Fraction) -> Fraction:
    """Frames a second as a fraction: 30000 / 1001 stays exact over hours. UserError unless 0.1 <= fps <= 1000."""
    if not 0.1 <= fps <= 1000:  # NaN too
        raise UserError(
            "frame rate is not usable", got=f"fps {fps}", expected="0.1 to 1000", do="pass --fps 23 (FantasyTalking)"
        )
    return Fraction(fps).limit_denominator(1001)


@contextmanager
def _container(path: str | Path, kind: str):
    """An opened PyAV container; FFmpeg's errors become UserErrors. Playlists may not lead to the network."""
    import av
    from av.error import FFmpegError

    path = check_file(path, kind)
    try:
        with av.open(str(path), metadata_errors="replace", options={"protocol_whitelist": "file"}) as container:
            yield container
    except (FFmpegError, ValueError) as error:
        raise broken(path, kind, getattr(error, "strerror", None) or str(error)) from error


def _check_length(stream, seconds: float, path: str | Path, kind: str) -> None:
    """A file that states its length and holds clearly less of it was cut off."""
    path, container = Path(path), stream.container.format.name
    if container == "wav" and _riff_bytes(path) > path.stat().st_size * 1.01 + 16:
        raise broken(path, kind, f"{path.stat().st_size} of the {_riff_bytes(path)} bytes it states: it was cut off")
    if stream.duration is None or not (container in EXACT_LENGTH or (container == "mp3" and _counts_frames(path))):
        return
    stated = float(stream.duration * stream.time_base)
    if seconds < 0.98 * stated - 0.1:
        raise broken(path, kind, f"{seconds:.2f} s of the {stated:.2f} s that it states: it was cut off")


def _riff_bytes(path: Path) -> int:
    """The size that a wav file states, which FFmpeg does not check; 0 where a recorder could not know it."""
    with path.open("rb") as file:
        stated = int.from_bytes(file.read(8)[4:], "little") + 8
    return stated if stated < 0x7F000000 else 0


def _counts_frames(path: Path) -> bool:
    """Whether an mp3 states its length (a Xing or Info frame, after the ID3 tag); else FFmpeg guesses it."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)))
        first_frame = file.read(256)
    return b"Xing" in first_frame or b"Info" in first_frame


def _picture_stream(container):
    """The first moving picture (covers of music files are streams too), or None."""
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def read_video(path: str | Path) -> Iterator[tuple[float, Tensor]]:
    """Yield (seconds since the first frame, frame [3, H, W] in [0, 1]) of a video, upright, one frame at a time."""
    with _container(path, "video") as container:
        stream = _picture_stream(container)
        if stream is None:
            raise broken(Path(path), "video", "a file without moving pictures")
        stream.thread_type = "AUTO"
        first, last = None, Fraction(0)
        for frame in container.decode(stream):
            time = last if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
            first = time if first is None else first
            last = time
            picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield float(time - first), torch.from_numpy(picture.copy()).permute(2, 0, 1).float().div(255)
        if first is None:
            raise broken(Path(path), "video", "no frame that can be decoded")
        _check_length(stream, float(last - first + 1 / (stream.average_rate or 1)), path, "video")


def video_size(path: str | Path) -> tuple[int, int, int]:
    """(frames, height, width) as a video's header states them; no frame is decoded, or turned upright."""
    with _container(path, "video") as container:
        stream = _picture_stream(container)
        if stream is None:
            raise broken(Path(path), "video", "a file without moving pictures")
        seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
        return stream.frames or round(seconds * (stream.average_rate or 1)), stream.height, stream.width


def video_header(path: str | Path) -> tuple[float, bool]:
    """(seconds, whether there is a sound track) by a video's header, or its packets; no frame is decoded."""
    with _container(path, "video") as container:
        stream = _picture_stream(container)
        if stream is None:
            raise broken(Path(path), "video", "a file without moving pictures")
        seconds = stream.duration * stream.time_base if stream.duration else _shown_seconds(container, stream)
        return float(seconds), bool(container.streams.audio)


@dataclass(frozen=True)
class FrameTimes:
    """When each frame of a video is shown: whole `ticks` [T] of `base` seconds by the file's clock, in order. The first
    need not be at 0."""

    ticks: list[int]
    base: Fraction


def frame_times(path: str | Path) -> FrameTimes:
    """The times of all frames, by the file's packets; no frame is decoded. Raises UserError for a file that is no
    video."""
    with _container(path, "video") as container:
        stream = _picture_stream(container)
        if stream is None:
            raise broken(Path(path), "video", "a file without moving pictures")
        return FrameTimes(_stamps(container, stream), stream.time_base)


def _stamps(container, stream) -> list[int]:
    """The time stamps of the frames that are shown, in order."""
    return sorted(p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard)


def _shown_seconds(container, stream) -> float:
    """From the first frame's time to the last one's end. What a file without lengths of its tracks states as its own
    (mkv, webm) is that of the longest track, and counts from before a picture that comes late."""
    times = _stamps(container, stream)
    if len(times) < 2:
        return 0.0
    return float((times[-1] - times[0]) * stream.time_base) * len(times) / (len(times) - 1)


def video_seconds(path: str | Path) -> float:
    """How long a video is: as its header says, else counted frame by frame."""
    if seconds := video_header(path)[0]:
        return seconds
    times = [time for time, _ in read_video(path)]
    return times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 else 0.04)


def read_audio(path: str | Path, layout: str | None = None, *, last: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (rate, sound float32 [channels, n]) of the first sound track, at its own rate, in `layout` or its own.
    last: of the last track that can be decoded, which is the one that ComfyUI takes.

    Time 0 is the first frame of the picture, in a file with one, else the first sample: a track that starts later
    begins with silence, holes are filled with it, what sounds before the picture is dropped.
    """
    import av

    with _container(path, "audio") as container:
        tracks = [track for track in container.streams.audio if not last or track.codec_context is not None]
        if not tracks:
            raise NoSound(
                f"{path} has no sound",
                got="a file without an audio stream",
                expected="wav, mp3, flac, m4a or a video with sound",
                do="bring a file with sound",
            )
        stream = tracks[-1 if last else 0]
        picture = _picture_stream(container)
        start = _start(picture)
        resampler = av.AudioResampler(format="flt", layout=layout)  # packed: PyAV reads beyond 7 planes, and crashes
        rate, position, before = 0, 0, 0  # samples handed out so far, and left out before the picture
        for frame in _decoded(container, stream):
            rate = frame.sample_rate
            start = frame.time if start is None else start
            hole = round((frame.time - start) * rate) - position if frame.time is not None else 0
            for packed in resampler.resample(frame):
                whole = packed.to_ndarray().reshape(-1, packed.layout.nb_channels).T
                sound = _place(whole, hole, rate, first=position == 0)
                position += sound.shape[1]
                before += max(whole.shape[1] - sound.shape[1], 0)
                yield rate, sound
        _check_length(stream, (position + before) / rate if rate else 0, path, "audio")


def _start(picture) -> Fraction | None:
    if picture is None or picture.start_time is None or picture.time_base is None:
        return None
    return picture.start_time * picture.time_base


def _decoded(container, stream) -> Iterator:
    """The frames of a sound track. Packets before the first frame may be junk: cut mp3 files begin so."""
    from av.error import InvalidDataError

    begun = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except InvalidDataError:
            if begun:
                raise
            continue
        begun = begun or bool(frames)
        yield from frames


def _place(sound: np.ndarray, hole: int, rate: int, first: bool) -> np.ndarray:
    """Silence before a frame that comes late, less of the first if it comes early; jitter below 50 ms is ignored."""
    if hole > LARGEST_HOLE * rate:
        raise ValueError(f"a hole of {hole / rate:.0f} s in the sound")
    if hole > rate // 20 or (first and hole > 0):
        return np.pad(sound, ((0, 0), (hole, 0)))
    return sound[:, -hole:] if first and hole < 0 else sound
