"""How long a candidate is and how fast: what is asked of a source, and what of its video is kept.

A source has its own frame rate and makes 4k + 1 frames, not fewer than some, not more than some. Where more is asked
of it than the voice lasts, silence follows the voice; where another length or rate is kept, frames are taken by their
timestamps and encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fantasy_core import audio, media
from fantasy_core.errors import UserError
from train.candidate_rows import Measured
from train.scenes import at_times
from train.source_workflows import Source

SAME_RATE = 0.002  # relative; 23.976 frames a second for 24 are the same


@dataclass(frozen=True)
class Kept:
    """What a video must be in the end, cut and resampled if it is not."""

    frames: int
    fps: float

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def fits(self, told: Measured) -> bool:
        return told.frames == self.frames and abs(told.fps - self.fps) <= SAME_RATE * self.fps


def asked(kept: Kept, source: Source) -> int:
    """The fewest frames (4k + 1) of a source, at its rate, that show the last of the kept frames; there may be more
    than it can make."""
    shown = int((kept.frames - 1) / kept.fps * source.fps + 1e-6) + 1
    needed = kept.frames if source.fps == kept.fps else shown
    return max((needed + 2) // 4 * 4 + 1, source.least_frames)


def of_voice(seconds: float, source: Source) -> tuple[int, Kept | None]:
    """(frames to ask for, what is kept of them if not all): as many as the voice fills, up to what the source can.
    Raises UserError for less than 5 frames."""
    frames = min(audio.frames_for(seconds, source.fps), source.frames)
    if frames >= source.least_frames:
        return frames, None
    return source.least_frames, Kept(frames, source.fps)


def shared(seconds: float, fps: float, sources: Iterable[Source]) -> Kept:
    """The most frames (4k + 1) at `fps` that the voice fills and every source can make. Raises UserError for less than
    5 frames."""
    kept = Kept(audio.frames_for(seconds, fps), fps)
    for source in sources:
        while kept.frames > 5 and asked(kept, source) > source.frames:
            kept = Kept(kept.frames - 4, fps)
    return kept


def with_silence(voice: Path, out: Path, seconds: float) -> None:
    """Write the voice as WAV, followed by silence up to `seconds`; once."""
    if out.exists():
        return
    pieces = list(media.read_audio(voice))
    rate, sound = pieces[0][0], np.concatenate([piece for _, piece in pieces], axis=1)
    sound = np.pad(sound, ((0, 0), (0, max(0, round(seconds * rate) - sound.shape[1]))))
    out.parent.mkdir(parents=True, exist_ok=True)
    with media.replacing(out) as beside:
        media.write_wav(beside, sound, rate)


def cut(video: Path, out: Path, kept: Kept) -> None:
    """Write what is kept of a video, with its sound if it has one, as an mp4. Raises UserError for a video that is
    shorter, or that has an odd side."""
    seen: list[float] = []
    frames = at_times(_noting(video, seen), (index / kept.fps for index in range(kept.frames)), kept.fps)
    sound = video if media.video_header(video)[1] else None
    with media.VideoWriter(out, kept.fps, sound=sound) as writer:
        for frame in frames:
            if frame.shape[1] % 2 or frame.shape[2] % 2:
                got = f"{frame.shape[2]} x {frame.shape[1]}"
                raise UserError(f"{video} cannot be encoded", got=got, expected="even sides", do="scale it")
            writer.write(frame[None])
        lasts = seen[-1] + (seen[-1] / (len(seen) - 1) if len(seen) > 1 else 0.0)
        if lasts < (kept.frames - 1) / kept.fps - 1e-6:
            raise UserError(
                f"{video} is too short",
                got=f"{lasts:.2f} s of {kept.seconds:.2f} s",
                expected="as long as the other videos of its input",
                do="bring a longer one, or ask less of all with --seconds",
            )


def _noting(video: Path, seen: list[float]) -> Iterator[tuple[float, Tensor]]:
    """The frames of a video, whose times are written down as they are drawn."""
    for time, frame in media.read_video(video):
        seen.append(time)
        yield time, frame
