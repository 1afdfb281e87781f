"""Faces for SyncNet: boxes of frames -> tracks of one face each -> crops, as joonson/syncnet_python makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..lips import MESH, landmarker

Array = np.ndarray
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Faces = Callable[[Array], list[Box]]  # frame uint8 [H, W, 3], RGB -> boxes
LEAST_OVERLAP, MOST_MISSED = 0.5, 25  # of boxes that are one face; frames between its sightings
SMOOTH, MARGIN, GREY, SIDE = 13, 0.4, 110, 224


@dataclass(frozen=True)
class FaceTrack:
    """One face from frame `first` on: boxes [T, 4], those between sightings in straight lines; `seen`: sightings."""

    first: int
    boxes: Array
    seen: int

    @property
    def size(self) -> float:
        """The larger of the mean width and height, in pixels."""
        return float(max((self.boxes[:, 2] - self.boxes[:, 0]).mean(), (self.boxes[:, 3] - self.boxes[:, 1]).mean()))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return inside / (areas - inside) if areas > inside else 0.0


def tracks(found: list[list[Box]], scene: Array | None = None) -> list[FaceTrack]:
    """All tracks of the boxes found in each frame: a box goes on with the earliest track whose last box overlaps it by
    more than a half, at most 25 frames ago, in the same scene (`scene` [n]: which one each frame is of)."""
    scene = np.zeros(len(found)) if scene is None else scene
    open_tracks: list[list[tuple[int, Box]]] = []

    def goes_on(track: list[tuple[int, Box]], frame: int, box: Box) -> bool:
        last, place = track[-1]
        near = 0 < frame - last <= MOST_MISSED and scene[frame] == scene[last]
        return near and overlap(box, place) > LEAST_OVERLAP

    for frame, boxes in enumerate(found):
        for box in boxes:
            track = next((one for one in open_tracks if goes_on(one, frame, box)), None)
            if track is None:
                open_tracks.append([(frame, box)])
            else:
                track.append((frame, box))
    return [_filled(track) for track in open_tracks]


def _filled(track: list[tuple[int, Box]]) -> FaceTrack:
    frames, boxes = np.array([frame for frame, _ in track]), np.array([box for _, box in track], np.float64)
    every = np.arange(frames[0], frames[-1] + 1)
    return FaceTrack(int(frames[0]), np.stack([np.interp(every, frames, side) for side in boxes.T], 1), len(track))


def crops(frames: Array, track: FaceTrack) -> Tensor:
    """frames uint8 [n, H, W, 3] of the whole video -> the track's faces uint8 [T, 3, 224, 224], blue first."""
    left, top, right, bottom = track.boxes.T
    half = smoothed(np.maximum(bottom - top, right - left) / 2)
    x, y = smoothed((left + right) / 2), smoothed((top + bottom) / 2)
    shown = frames[track.first : track.first + len(half)]
    return torch.stack([_crop(frame, *place) for frame, *place in zip(shown, x, y, half, strict=True)])


def smoothed(values: Array) -> Array:
    """The median of 13 neighbours [T]; beyond the ends are zeros, as in scipy's medfilt."""
    return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(values, SMOOTH // 2), SMOOTH), 1)


def _crop(frame: Array, x: float, y: float, half: float) -> Tensor:
    """[3, 224, 224] of y - s..y + 1.8 s, x - 1.4 s..x + 1.4 s (s = half), grey beyond the frame."""
    pad = int(half * (1 + 2 * MARGIN))
    padded = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), constant_values=GREY)
    x, y = x + pad, y + pad
    rows = slice(max(int(y - half), 0), int(y + half * (1 + 2 * MARGIN)))
    columns = slice(max(int(x - half * (1 + MARGIN)), 0), int(x + half * (1 + MARGIN)))
    face = torch.from_numpy(np.ascontiguousarray(padded[rows, columns, ::-1])).movedim(-1, 0)[None].float()
    return F.interpolate(face, (SIDE, SIDE), mode="bilinear", align_corners=False)[0].round().byte()


@contextmanager
def mediapipe_faces(task: str | Path | None = None) -> Iterator[Faces]:
    """Boxes around mediapipe's meshes. They end at the forehead, where S3FD's reach further: scores differ."""
    with landmarker(task) as detect:
        yield lambda frame: [box_of(mesh) for mesh in detect(frame)]


def box_of(mesh: Array) -> Box:
    """Around the landmarks [468 or more, 2] of a face; irises, from 468 on, are no part of its outline."""
    left, top, right, bottom = map(float, (*mesh[:MESH].min(0), *mesh[:MESH].max(0)))
    return left, top, right, bottom
