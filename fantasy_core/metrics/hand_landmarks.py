"""Hands by mediapipe: 21 joints a hand without weights of a pose network, and without a score of any joint.

Its joints have no score and its hands are certain to 0.99 wherever they are found, so HKC cannot be said with it; HKV
and the rest can. Each frame is looked at alone (IMAGE mode): nothing is smoothed in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..manifest import sha256
from ..media import check_file
from .hands import Hands

Array = np.ndarray
TASK = "hand_landmarker.task"
SURE = 0.5
SIDES = {"Left": 0, "Right": 1}


class MediapipeHands:
    """Hands of whoever shows them, at most two. task: hand_landmarker.task. Raises UserError where it is not there."""

    scored = False
    settings: Mapping[str, object]

    def __init__(self, task: str | Path):
        self._task = check_file(task, "hand landmarker")
        mediapipe = _mediapipe()
        self.settings = {
            "detector": "mediapipe hands, IMAGE mode",
            "mediapipe": mediapipe.__version__,
            "weights": self._task.name,
            "weights_sha256": sha256(self._task),
            "least_hand_confidence": SURE,
        }

    @contextmanager
    def open(self) -> Iterator[Hands]:
        """Raises UserError for a file that is no hand landmarker."""
        mediapipe = _mediapipe()
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self._task)),
            running_mode=vision.RunningMode.IMAGE,
            num_hands=2,
            min_hand_detection_confidence=SURE,
            min_hand_presence_confidence=SURE,
        )
        try:
            network = vision.HandLandmarker.create_from_options(options)
        except (RuntimeError, ValueError, OSError) as error:
            got, do = str(error).splitlines()[0][:200], f"use {TASK}"
            raise UserError(f"{self._task} cannot be opened", got=got, expected=TASK, do=do) from error

        def hands(frame: Array) -> Array:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
            found = network.detect(image)
            sides = [(sort[0].category_name, sort[0].score) for sort in found.handedness]
            joints = [np.array([(point.x, point.y) for point in hand]) for hand in found.hand_landmarks]
            return by_side(sides, [points * (frame.shape[1], frame.shape[0]) for points in joints])

        with network:
            yield hands


def by_side(sides: list[tuple[str, float]], joints: list[Array]) -> Array:
    """Hands [2, 21, 3]: left, right; of two on one side the less certain one goes to the other. Scores are NaN."""
    found = np.full((2, 21, 3), np.nan)
    for number in sorted(range(len(sides)), key=lambda n: -sides[n][1])[:2]:
        place = SIDES[sides[number][0]]
        place = place if np.isnan(found[place, 0, 0]) else 1 - place
        found[place, :, :2] = joints[number]
    return found


def _mediapipe():
    try:
        import mediapipe
    except (ImportError, OSError) as error:
        raise UserError(
            "these hands need mediapipe",
            got=str(error).splitlines()[0],
            expected="mediapipe >= 1.0, and on Linux libEGL and libGLESv2 (Debian, Ubuntu: libegl1 libgles2)",
            do='pip install "fantasytalking2[lips]", or use dwpose',
        ) from error
    return mediapipe
