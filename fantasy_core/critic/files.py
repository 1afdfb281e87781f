"""A video file, shown to the critic: decoded a frame at a time for all views, and once before that to find the face."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import media
from ..audio import load_voice
from ..errors import NoFace, NoSound
from ..lips import landmarker, track
from .asked import Views
from .shown import Box, Shown, face_box, pick, sample_times, show

LOOKS = 5.0  # times a second that a face is looked for
FindFace = Callable[[Path, float], Box | None]


def show_file(path: Path, views: Views, find_face: FindFace | None = None) -> dict[str, list[Shown]]:
    """The windows of a video by view, with its sound; a file without sound, or with silence, is shown as silent. A view
    of the face has no window where there is no face.

    find_face: where the face is, for views of it. Raises UserError for a file that cannot be decoded, NoFace where no
    view is left, ValueError for views of the face without find_face (`views.whole()` do without).
    """
    seconds, faceless, face = media.video_seconds(path), {}, None
    if views.crops_face:
        if find_face is None:
            raise ValueError("views of the face, and nothing that finds it: they would show the whole frame")
        try:
            face = find_face(path, seconds)
        except NoFace:
            faceless = {views.of[dimension].name: [] for dimension in views.of_face}
            views = views.only([dimension for dimension in views.of if dimension not in views.of_face])
            if not views.of:
                raise
    return show(frames_of(path), seconds, voice_of(path), views, face) | faceless


def frames_of(path: Path) -> Iterator[tuple[float, Tensor]]:
    """(seconds, uint8 [3, H, W]), one at a time."""
    for time, frame in media.read_video(path):
        yield time, frame.mul(255).round().to(torch.uint8)


def voice_of(path: Path) -> np.ndarray | None:
    """The sound [n] at 16 kHz, None where there is none to hear."""
    try:
        return load_voice(path).numpy()
    except NoSound:
        return None


@contextmanager
def face_finder(task: Path | None) -> Iterator[FindFace]:
    """Finds faces by mediapipe with the user's face_landmarker.task."""
    with landmarker(task) as detect, landmarker(task, confidence=0.9) as strict:
        yield partial(find_face, detect=detect, strict=strict)


def find_face(path: Path, seconds: float, detect, strict=None) -> Box:
    """The box of the largest face, wherever it goes. Raises NoFace for a video without one."""
    looks = pick(frames_of(path), {"face": sample_times(0, seconds, LOOKS)})
    pictures = [frame.movedim(0, -1).contiguous().numpy() for _, frame in looks]
    found = track(pictures, detect, strict)
    if not found.seen.any():
        raise NoFace(
            f"{path} shows no face",
            got=f"none in {len(pictures)} frames",
            expected="a face whose lips can be judged",
            do="leave it out, or judge whole frames (--face whole)",
        )
    return face_box(found.landmarks, *pictures[0].shape[:2])
