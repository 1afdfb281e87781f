"""A video file as metrics are given it: decoded, upright, with its sound, and brought to one frame rate and size.

What a file says of itself (`Facts`) costs no more than its packets and one frame, and tells before anything is measured
whether methods differ in frame rate or size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fantasy_core.errors import NoSound, UserError
from fantasy_core.media import read_audio, read_video
from fantasy_core.media.files import broken, check_file
from fantasy_core.metrics.contract import Measured, Video
from fantasy_core.metrics.sampling import at_rate, cuts_in

RATE = 16_000
UNEVEN = 0.25  # of the median time between frames: beyond, a frame rate is called variable
CUT = 0.1  # least mean difference of neighbouring frames at a cut, as train.clips has it
SMALLEST, LARGEST = 16, 4096  # pixels of a side


@dataclass(frozen=True)
class Facts:
    """What is known of a video without measuring it; `notes` are what its user should know."""

    fps: float
    frames: int
    width: int
    height: int
    seconds: float
    channels: int
    notes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What must be equal where numbers are compared."""
        size = f"{self.width}x{self.height}"
        return f"{round(self.fps, 1):g} fps, {size}" if self.fps else f"a picture, {size}"


def facts_of(path: Path) -> Facts:
    """Raises UserError for a file that is no video, or whose first frame cannot be decoded."""
    import av

    path = check_file(path, "video")
    try:
        with av.open(str(path), metadata_errors="replace", options={"protocol_whitelist": "file"}) as container:
            return _facts(path, container)
    except (av.FFmpegError, ValueError) as error:
        raise broken(path, "video", getattr(error, "strerror", None) or str(error)) from error


def _facts(path: Path, container: Any) -> Facts:
    from av.stream import Disposition

    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not pictures:
        raise broken(path, "video", "a file without moving pictures")
    stream = pictures[0]
    stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    container.seek(0)
    first = next(container.decode(stream), None)
    if first is None or not stamps:
        raise broken(path, "video", "no frame that can be decoded")
    times = (np.array(stamps) - stamps[0]) * float(stream.time_base)
    fps = (len(times) - 1) / times[-1] if times[-1] > 0 else 0.0
    turned = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turned % 2 else (first.height, first.width)
    sound = next(iter(container.streams.audio), None)
    channels = sound.channels if sound else 0
    notes = _notes(np.diff(times), first, turned, channels)
    return Facts(round(fps, 4), len(times), width, height, round(float(times[-1]), 4), channels, tuple(notes))


def _notes(steps: np.ndarray, frame: Any, turned: int, channels: int) -> list[str]:
    notes = []
    if not len(steps):
        notes.append("a single frame")
    elif np.abs(steps - np.median(steps)).max() > UNEVEN * np.median(steps):
        notes.append(f"variable frame rate, {1 / steps.max():.3g} to {1 / max(steps.min(), 1e-6):.3g} fps")
    depth = max(component.bits for component in frame.format.components)
    if depth > 8:
        notes.append(f"{depth} bits a channel, measured with 8")
    if turned:
        notes.append(f"turned by {turned * 90} degrees on showing, measured upright")
    if channels > 2:
        notes.append(f"{channels} channels of sound, measured as their mean")
    if not channels:
        notes.append("no sound track")
    return notes


@dataclass(frozen=True)
class Protocol:
    """To what all videos are brought: frames a second (what is shown in the middle of each interval), and a size
    (`512`: the short side, aspect kept; `832x480`: filled, the rest cut off around the middle). None: as they are."""

    fps: float | None = None
    size: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        return {"fps": self.fps, "size": self.size}

    def brought(self, facts: Facts) -> Facts:
        """What a video is after it."""
        width, height = facts.width, facts.height
        if self.size:
            width, height = _sized(width, height, parse_size(self.size))
        return replace(facts, fps=self.fps if self.fps and facts.fps else facts.fps, width=width, height=height)


def parse_size(text: str) -> tuple[int, ...]:
    """`512` -> (512,), `832x480` -> (832, 480). Raises UserError."""
    try:
        sides = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or not all(SMALLEST <= side <= LARGEST for side in sides):
        do = "pass --size 512 (short side) or --size 832x480"
        raise UserError("size is not readable", got=repr(text), expected=f"N or WxH, {SMALLEST} to {LARGEST}", do=do)
    return sides


def decoded(path: Path, protocol: Protocol) -> Video:
    """Frames are brought to their size one at a time: never are all of them in memory as they were. Raises UserError
    for a file that cannot be read, and for a single frame where a frame rate is asked for."""
    size = parse_size(protocol.size) if protocol.size else None
    times, frames, shapes = [], [], set()
    for time, frame in read_video(path):
        picture = frame.movedim(0, -1).mul_(255).round_().byte().numpy()
        shapes.add(picture.shape)
        times.append(time)
        frames.append(resized(picture[None], size)[0] if size else picture)
    if len(shapes) > 1:
        raise broken(path, "video", f"frames of {len(shapes)} sizes")
    return harmonised(Video(path, _stacked(frames), np.array(times), sound_of(path)), protocol)


def _stacked(frames: list[np.ndarray]) -> np.ndarray:
    """All frames as one array; each is let go as soon as it is in there."""
    whole = np.empty((len(frames), *frames[0].shape), np.uint8)
    for number in range(len(frames)):
        whole[number], frames[number] = frames[number], np.empty(0, np.uint8)
    return whole


def sound_of(path: Path) -> np.ndarray | None:
    """The sound of a video, mean of its channels, float32 [n] at 16 kHz; None without a track."""
    import librosa

    try:
        pieces = [(rate, sound.mean(0)) for rate, sound in read_audio(path)]
    except NoSound:
        return None
    if not pieces:
        return None
    whole = np.concatenate([sound for _, sound in pieces])
    return librosa.resample(whole, orig_sr=pieces[0][0], target_sr=RATE).astype(np.float32)


def harmonised(video: Video, protocol: Protocol) -> Video:
    """A video at the rate and size of the protocol; its sound stays. Raises UserError for a single frame, which has no
    rate."""
    frames, times = video.frames, video.times
    if protocol.fps:
        taken = at_rate(video, protocol.fps, 0.5)
        frames, times = frames[taken], np.arange(len(taken)) / protocol.fps
    if protocol.size:
        frames = resized(frames, parse_size(protocol.size))
    return replace(video, frames=frames, times=times)


def resized(frames: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] by Lanczos; those that have the size already are not touched."""
    from PIL import Image, ImageOps

    height, width = frames.shape[1:3]
    wanted = _sized(width, height, size)
    if wanted == (width, height):
        return frames
    fitted = (ImageOps.fit(Image.fromarray(f), wanted, Image.Resampling.LANCZOS) for f in frames)
    return np.stack([np.asarray(frame) for frame in fitted])


def _sized(width: int, height: int, size: tuple[int, ...]) -> tuple[int, int]:
    if len(size) == 2:
        return size[0], size[1]
    scale = size[0] / min(width, height)
    return round(width * scale), round(height * scale)


class SceneCuts:
    """How often the picture changes at once: not a metric of the paper, but what makes others mean little."""

    name = "cuts"
    columns = ("cuts",)
    better = {"cuts": 0}
    settings = {"least_difference": CUT}
    verified = True

    def measure(self, video: Video) -> Measured:
        times, found = cuts_in(video, CUT)
        told = ", ".join(f"{times[index]:.2f} s" for index in found)
        return Measured({"cuts": float(len(found))}, {"cuts": f"a cut at {told}"} if found else {})
