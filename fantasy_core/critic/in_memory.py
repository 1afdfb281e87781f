"""A clip that is in memory already, shown to the critic: pictures, sound, and where its face is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..audio import as_voice
from ..errors import NoSound
from ..lips import choose
from .asked import Views
from .shown import Box, Shown, face_box, show


@dataclass(frozen=True)
class Clip:
    """images [T, H, W, 3 or more] in 0..1 at `fps`, or shown from `times` [T] (seconds) on; sound [channels, n] at
    `rate`, from the first frame on, or None."""

    images: Tensor
    fps: float
    sound: Tensor | None = None
    rate: int = 0
    times: np.ndarray | None = None

    @property
    def seconds(self) -> float:
        """To the end of the last frame, which is shown for the mean time of the others."""
        if self.times is None or len(self.times) < 2:
            return len(self.images) / self.fps
        return float(self.times[-1]) * len(self.times) / (len(self.times) - 1)

    @property
    def voice(self) -> np.ndarray | None:
        """The sound [n] at 16 kHz, None where there is none to hear."""
        if self.sound is None:
            return None
        try:
            return as_voice(self.sound, self.rate).numpy()
        except NoSound:
            return None


def show_clip(clip: Clip, views: Views, dimensions: Sequence[str], face: Box | None = None) -> dict[str, list[Shown]]:
    """The windows of a clip in those views in which the dimensions are asked. face: what views of the face show;
    without one they show all of the frame."""
    times = np.arange(len(clip.images)) / clip.fps if clip.times is None else clip.times
    frames = ((float(time), as_bytes(image)) for time, image in zip(times, clip.images, strict=True))
    return show(frames, clip.seconds, clip.voice, views.only(dimensions), face)


def as_bytes(image: Tensor) -> Tensor:
    """[H, W, 3 or more] in 0..1 -> uint8 [3, H, W], rounded; an alpha channel is dropped."""
    return image[..., :3].float().mul(255).round().clamp(0, 255).to(torch.uint8).cpu().movedim(-1, 0)


def digest(windows: Mapping[str, Sequence[Shown]]) -> str:
    """A hash of all that the critic sees and hears of a clip: equal ones have equal scores."""
    found = hashlib.sha256()
    for view, shown in sorted(windows.items()):
        for one in shown:
            found.update(repr((view, one.fps, one.silent, tuple(one.frames.shape), len(one.sound))).encode())
            found.update(one.frames.contiguous().numpy())
            found.update(np.ascontiguousarray(one.sound))
    return found.hexdigest()


def face_of_landmarks(
    faces: Sequence[Sequence[np.ndarray]], seen: tuple[int, int], size: tuple[int, int]
) -> Box | None:
    """The box of one face wherever it goes: the largest, then the one nearest to it. None where no frame has a face.

    faces: for each frame the landmarks [468 or more, 2] of its faces, in pixels of pictures of `seen` (height, width);
    they need not be all frames of the clip. size: the clip's (height, width).
    """
    last, found = None, []
    for inside in faces:
        chosen = choose(list(inside), last)
        if chosen is not None:
            last = chosen
            found.append(chosen)
    if not found:
        return None
    scale = np.array([size[1] / seen[1], size[0] / seen[0]])
    return face_box(np.stack(found) * scale, *size)


def face_of_mask(mask: Tensor, size: tuple[int, int]) -> Box | None:
    """The box of what a mask [h, w] or [T, h, w] covers in any frame (half of it or more), on pictures of `size`
    (height, width). None for an empty mask."""
    covered = (mask if mask.ndim == 2 else mask.amax(0)) >= 0.5
    rows, columns = covered.any(1).nonzero().flatten().tolist(), covered.any(0).nonzero().flatten().tolist()
    if not rows:
        return None
    scale = np.array([size[1] / covered.shape[1], size[0] / covered.shape[0]])
    corners = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], float)
    return face_box(corners[None] * scale, *size)
