"""HKC and HKV: how sure a detector is of a speaker's hands, and how much they move (after CyberHost, Lin et al. 2025a).

No code was published with these measures; this is our definition. Keypoints K [T, 2, 21, 3] are (x, y, score) of both
hands of the largest person, NaN where a hand is absent. A hand is present in a frame where it is found and its mean
score, if the detector gives scores, is 0.3 or more. Lengths are in pixels of a picture whose short side is 512.

- `hkc`: mean score of all keypoints of present hands.
- `hkv`: mean over hands and joints of Var_t(x) + Var_t(y), px^2, over the frames where the hand is present (8 or more).
- `hkv_std`: mean over hands and joints of the root of that sum, px.
- `hkv_rel`: the same variance of the 20 joints beside the wrist, relative to it and in palm lengths: fingers alone.
- `hand_step`: mean way of a joint in 1/25 s, px, between neighbouring frames in which its hand is present.
- `hand_presence`: share of frames times two in which a hand is present.

A scene cut is no motion: variances are taken in each scene by itself, about the hand's mean there, and weigh by the
frames in it (scenes in which the hand is present for fewer than 8 frames are left out); steps over a cut are left out.

Published values of HKV run from 25 to 169: detectors and scales differ, so compare only numbers with equal settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np

from .contract import Measured, Video
from .networks import Held
from .sampling import scenes

Array = np.ndarray
Hands = Callable[[Array], Array]  # frame uint8 [H, W, 3], RGB -> [2, 21, 3] in pixels, NaN for what is absent
JOINTS, WRIST, KNUCKLE = 21, 0, 9  # the middle finger's knuckle: from the wrist, the length of the palm
LEAST_SCORE, LEAST_FRAMES = 0.3, 8
SHORT, FPS = 512.0, 25.0
COLUMNS = ("hkc", "hkv", "hkv_std", "hkv_rel", "hand_step", "hand_presence")
NO_SCORE = "no keypoint score: this detector gives none"


class HandDetector(Protocol):
    """What finds hands. settings: its name, and all that its keypoints depend on. scored: whether keypoints have a
    score of their own. open(): loads it, for as long as the context lasts."""

    settings: Mapping[str, object]
    scored: bool

    def open(self) -> AbstractContextManager[Hands]: ...


class GivenHands:
    """Keypoints by a function of yours: frame [H, W, 3] -> [2, 21, 3]."""

    def __init__(self, hands: Hands, name: str, *, scored: bool = True):
        self._hands, self.scored = hands, scored
        self.settings: Mapping[str, object] = {"detector": name}

    def open(self) -> AbstractContextManager[Hands]:
        return nullcontext(self._hands)


class HandMotion:
    """The columns above, of a video's every frame."""

    name = "hands"
    columns = COLUMNS
    better: Mapping[str, int] = {**dict.fromkeys(COLUMNS, 0), "hkc": 1, "hkv": 1}
    verified = False
    settings: Mapping[str, object]

    def __init__(self, detector: HandDetector):
        self._detector, self._hands = detector, Held(detector.open)
        self.settings = {
            **detector.settings,
            "least_hand_score": LEAST_SCORE,
            "least_frames": LEAST_FRAMES,
            "short_side": int(SHORT),
            "cuts": "part scenes",
        }

    def open(self) -> None:
        """Opens the detector. Raises UserError without its package, and for files of another model."""
        self._hands.open()

    def measure(self, video: Video) -> Measured:
        """What cannot be said is None, with the reason: no hand, too few frames, a detector without scores."""
        if not len(video.frames):
            return Measured(dict.fromkeys(COLUMNS), dict.fromkeys(COLUMNS, "0 frames"))
        hands = self._hands.open()
        found = np.stack([hands(frame) for frame in video.frames])
        scene = scenes(video, np.arange(len(video.frames)))
        return measured(found, video.frames.shape[1:3], video.times, scene, scored=self._detector.scored)


def measured(
    keypoints: Array, size: tuple[int, ...], times: Array, scene: Array | None = None, *, scored: bool = True
) -> Measured:
    """All columns of keypoints [T, 2, 21, 3] in pixels of frames of `size` (height, width), shown from `times` [T] on,
    each of scene number `scene` [T] (default: one scene).

    Raises ValueError for another shape.
    """
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.shape[1:] != (2, JOINTS, 3) or len(keypoints) != len(times):
        raise ValueError(f"keypoints {keypoints.shape} of {len(times)} frames, [T, 2, {JOINTS}, 3] expected")
    scene = np.zeros(len(times), int) if scene is None else scene
    here = present(keypoints, scored)
    places = keypoints[..., :2] * (SHORT / min(size))
    said = {
        "hkc": _hkc(keypoints, here, scored),
        **_variances(places, here, scene),
        "hand_step": _step(places, here, np.asarray(times, np.float64), scene),
    }
    values = {column: value if isinstance(value, float) else None for column, value in said.items()}
    reasons = {column: value for column, value in said.items() if isinstance(value, str)}
    return Measured(values | {"hand_presence": float(here.mean()) if here.size else None}, reasons)


def present(keypoints: Array, scored: bool = True) -> Array:
    """Whether each hand is there [T, 2], from keypoints [T, 2, 21, 3]: found whole, and likely enough."""
    found = np.isfinite(keypoints[..., :2]).all((2, 3))
    if not scored:
        return found
    return found & (np.nan_to_num(keypoints[..., 2]).mean(2) >= LEAST_SCORE)


def _hkc(keypoints: Array, here: Array, scored: bool) -> float | str:
    if not scored:
        return NO_SCORE
    return float(keypoints[..., 2][here].mean()) if here.any() else "no hand in any frame"


def _variances(places: Array, here: Array, scene: Array) -> dict[str, float | str]:
    """hkv, hkv_std and hkv_rel of places [T, 2, 21, 2], or why not."""
    spread, fingers = [], []
    for hand in range(2):
        known = [places[here[:, hand] & (scene == number), hand] for number in np.unique(scene)]  # each [t, 21, 2]
        known = [joints for joints in known if len(joints) >= LEAST_FRAMES]
        if known:
            frames = np.array([len(joints) for joints in known])
            spread.append(np.average([joints.var(0).sum(1) for joints in known], 0, frames))
            fingers.append(np.average([_fingers(joints) for joints in known], 0, frames))
    if not spread:
        most = max((int(here[scene == number].sum(0).max()) for number in np.unique(scene)), default=0)
        why = f"a hand in {most} frames, {LEAST_FRAMES} are needed" if most else "no hand in any frame"
        return dict.fromkeys(("hkv", "hkv_std", "hkv_rel"), why)
    numbers = (np.mean(spread), np.mean(np.sqrt(spread)), np.mean(fingers))
    return dict(zip(("hkv", "hkv_std", "hkv_rel"), map(float, numbers), strict=True))


def _fingers(joints: Array) -> Array:
    """Variance [20] of the joints [t, 21, 2] beside the wrist, relative to it, in squared palms."""
    relative = np.delete(joints - joints[:, WRIST : WRIST + 1], WRIST, 1)
    palm = np.linalg.norm(joints[:, KNUCKLE] - joints[:, WRIST], axis=1).mean()
    return relative.var(0).sum(1) / max(palm, 1e-6) ** 2


def _step(places: Array, here: Array, times: Array, scene: Array) -> float | str:
    """hand_step of places [T, 2, 21, 2], or why not."""
    both = here[1:] & here[:-1] & (np.diff(scene) == 0)[:, None]  # [T - 1, 2]
    if not both.any():
        return "no hand in two neighbouring frames" if here.any() else "no hand in any frame"
    way = np.linalg.norm(np.diff(places, axis=0), axis=-1).mean(2)  # [T - 1, 2]
    seconds = np.maximum(np.diff(times), 1e-6)[:, None]
    return float((way / seconds)[both].mean() / FPS)
