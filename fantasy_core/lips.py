"""Where the mouth is: landmarks of a face -> lip mask of every frame -> mask on the latent grid (M of Eq. 2).

Landmarks come from mediapipe in IMAGE mode (VIDEO mode smooths them in time: 0.4 frames late and a tenth smaller), or
masks are given. A frame without a face has an empty mask; gaps of up to five frames are bridged. The latent mask is
causal like Wan's VAE: frame 0 alone, then the mean of each four frames, and in space the mean of 8 x 8 pixels, which
keeps a closed mouth's few rows whatever their position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .media import check_file

Array = np.ndarray
Detect = Callable[[Array], list[Array]]  # frame [H, W, 3] uint8 -> faces, each landmarks [N, 2] in pixels
# the outer ring of the lips in drawing order, in mediapipe's mesh of 468 or 478 points
OUTER_LIPS = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
INNER_GAPS = ((13, 14), (82, 87), (312, 317))  # upper and lower inner lip: middle, left, right of it
EYES, CHEEKS, NOSE, CORNERS = (33, 263), (234, 454), 1, (61, 291)
MESH = 468  # points of the face; beyond them irises
DILATE = 0.25  # of half the mouth's width, on every side
LONGEST_GAP = 5  # frames without a face that are bridged
LEAST_SEEN, MOST_TURNED = 0.8, 0.9  # of frames; of the way to profile
PATCH, GROUP = 8, 4  # pixels a latent is wide, frames of a latent frame
TASK = "face_landmarker.task"
TASK_HASH = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"


# ---- pixels to latents ----


def project(mask: Tensor, mode: str = "causal") -> Tensor:
    """mask [T, H, W] in 0..1, T = 4k + 1, H and W multiples of 8 -> [k + 1, H/8, W/8], soft.

    `causal`: latent 0 is frame 0, latent i the mean of frames 4i-3..4i; a frame's time is exact. `trilinear`: one
    interpolation over all frames, the paper's wording: up to 2.8 frames late, and it can lose a closed mouth. Raises
    UserError for other sizes and modes.
    """
    frames, height, width = mask.shape
    if frames % GROUP != 1 or height % PATCH or width % PATCH:
        raise UserError(
            "this mask does not fit the latent grid",
            got=f"{frames} frames of {height} x {width}",
            expected="4k + 1 frames, height and width multiples of 8",
            do="cut or scale video and mask alike, before the mask is made",
        )
    mask = mask.float()[None, None]
    if mode == "trilinear":
        size = (1 + frames // GROUP, height // PATCH, width // PATCH)
        return F.interpolate(mask, size, mode="trilinear", align_corners=False)[0, 0]
    if mode != "causal":
        do = "use causal"
        raise UserError("unknown projection of a mask", got=repr(mode), expected="causal or trilinear", do=do)
    cells = F.avg_pool2d(mask[0], PATCH)  # [1, T, h, w]
    return torch.cat([cells[:, :1], cells[:, 1:].unflatten(1, (-1, GROUP)).mean(2)], 1)[0]


# ---- landmarks to pixels ----


def lip_mask(landmarks: Array, height: int, width: int, dilate: float = DILATE) -> Array:
    """Coverage [H, W] in 0..1 of the mouth: the outer ring of the lips, filled, grown by `dilate` half mouth widths.

    landmarks [N, 2] in pixels from the left and upper edges.
    """
    ring = landmarks[OUTER_LIPS]
    if dilate:
        reach = dilate * np.linalg.norm(landmarks[CORNERS[0]] - landmarks[CORNERS[1]]) / 2
        away = ring - ring.mean(0)
        ring = ring.mean(0) + away * (1 + reach / np.maximum(np.abs(away).max(0), 1e-6))
    return polygon_coverage(ring, height, width)


def polygon_coverage(polygon: Array, height: int, width: int, fine: int = 4) -> Array:
    """How much of each pixel [H, W] a polygon [n, 2] covers, counted on `fine` x `fine` points a pixel (even-odd)."""
    coverage = np.zeros((height, width), np.float32)
    low = np.clip(np.floor(polygon.min(0)).astype(int), 0, (width, height))
    high = np.clip(np.ceil(polygon.max(0)).astype(int), 0, (width, height))
    (columns, rows) = high - low
    if columns <= 0 or rows <= 0:
        return coverage
    x = low[0] + (np.arange(columns * fine) + 0.5) / fine
    y = (low[1] + (np.arange(rows * fine) + 0.5) / fine)[:, None]
    inside = np.zeros((rows * fine, columns * fine), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    cells = inside.reshape(rows, fine, columns, fine).mean((1, 3), dtype=np.float32)
    coverage[low[1] : high[1], low[0] : high[0]] = cells
    return coverage


def mouth_opening(landmarks: Array) -> float:
    """Height of the gap between the inner lips over the distance of the outer eye corners: mouths change width."""
    gaps = [np.linalg.norm(landmarks[upper] - landmarks[lower]) for upper, lower in INNER_GAPS]
    eyes = np.linalg.norm(landmarks[EYES[0]] - landmarks[EYES[1]])
    return float(np.mean(gaps) / max(eyes, 1e-6))


def turned(landmarks: Array) -> float:
    """0 frontal, about +-1 in profile: where the nose lies between the ends of the cheeks."""
    left, right = landmarks[CHEEKS[0], 0], landmarks[CHEEKS[1], 0]
    return float((2 * landmarks[NOSE, 0] - left - right) / max(abs(right - left), 1e-6))


# ---- a face through a video ----


@dataclass(frozen=True)
class LipTrack:
    """One face's landmarks [T, N, 2] (NaN where absent); `seen` [T]: a detector found it, `filled` [T]: or bridged."""

    landmarks: Array
    seen: Array
    filled: Array

    def masks(self, height: int, width: int, dilate: float = DILATE) -> Tensor:
        """Lip masks [T, H, W] in 0..1, empty where there is no face."""
        empty = np.zeros((height, width), np.float32)
        rows = zip(self.landmarks, self.filled, strict=True)
        return torch.from_numpy(np.stack([lip_mask(p, height, width, dilate) if f else empty for p, f in rows]))

    @property
    def openings(self) -> Array:
        """Mouth opening [T], NaN where absent."""
        return np.array([mouth_opening(p) if np.isfinite(p).all() else np.nan for p in self.landmarks])

    @property
    def unusable(self) -> str | None:
        """Why a video should not be compared by its lips, or None."""
        share = float(self.seen.mean())
        if share < LEAST_SEEN:
            return f"a face in {share:.0%} of the frames, {LEAST_SEEN:.0%} are needed"
        angles = [abs(turned(p)) for p, seen in zip(self.landmarks, self.seen, strict=True) if seen]
        if np.median(angles) > MOST_TURNED:
            return f"a face in profile in most frames (turned {np.median(angles):.2f}, {MOST_TURNED} is the most)"
        return None


def track(frames: Iterable[Array], detect: Detect, strict: Detect | None = None) -> LipTrack:
    """Follow the largest face of the first frame that has one through frames [H, W, 3] uint8.

    In each frame: in a window of three face sizes around its last place, else in the whole frame and, with `strict` (a
    detector of high confidence: low ones see faces in cats), in ever smaller windows. Gaps of up to five frames
    between sightings are bridged in straight lines, the first and last sighting hold as long.
    """
    last, rows = None, []
    for frame in frames:
        face = None if last is None else choose(in_window(detect, frame, *_around(last)), last)
        face = choose(search(frame, detect, strict), last) if face is None else face
        rows.append(face)
        last = last if face is None else face
    points = next((len(row) for row in rows if row is not None), MESH)
    landmarks = np.stack([np.full((points, 2), np.nan) if row is None else row for row in rows])
    seen = np.array([row is not None for row in rows])
    return LipTrack(*bridge(landmarks, seen))


def bridge(landmarks: Array, seen: Array, longest: int = LONGEST_GAP) -> tuple[Array, Array, Array]:
    """Fill gaps of up to `longest` frames: (landmarks [T, N, 2], seen [T], filled [T])."""
    landmarks, filled, found = landmarks.copy(), seen.copy(), np.flatnonzero(seen)
    for first, last in zip(found[:-1], found[1:], strict=True):
        if 1 < last - first <= longest + 1:
            part = (np.arange(1, last - first) / (last - first))[:, None, None]
            landmarks[first + 1 : last] = (1 - part) * landmarks[first] + part * landmarks[last]
            filled[first + 1 : last] = True
    if len(found):
        for gap, source in ((slice(max(0, found[0] - longest), found[0]), found[0]),
                            (slice(found[-1] + 1, found[-1] + 1 + longest), found[-1])):  # fmt: skip
            landmarks[gap], filled[gap] = landmarks[source], True
    return landmarks, seen, filled


def choose(faces: list[Array], last: Array | None) -> Array | None:
    """The largest face; after a first one, that whose mouth is nearest to it, at most a face's size away."""
    if not faces:
        return None
    if last is None:
        return max(faces, key=size)
    mouth = last[OUTER_LIPS].mean(0)
    near = min(faces, key=lambda face: np.linalg.norm(face[OUTER_LIPS].mean(0) - mouth))
    return near if np.linalg.norm(near[OUTER_LIPS].mean(0) - mouth) <= size(last) else None


def size(face: Array) -> float:
    """The larger side of a face's box, in pixels."""
    return float(np.ptp(face[:MESH], axis=0).max())


def _around(face: Array) -> tuple[float, float, float]:
    """Left, top and side of a window of three face sizes around a face."""
    middle, side = (face[:MESH].min(0) + face[:MESH].max(0)) / 2, 3 * size(face)
    return middle[0] - side / 2, middle[1] - side / 2, side


def search(frame: Array, detect: Detect, strict: Detect | None, smallest: int = 96) -> list[Array]:
    """Faces in the whole frame or, without any and with `strict`, in half-overlapping windows of halving size: the
    detector sees none that is smaller than about a tenth of the frame's longer side."""
    faces, (height, width), side = detect(frame), frame.shape[:2], min(frame.shape[:2])
    while strict and not faces and side >= smallest:
        for top in range(0, max(height - side, 0) + 1, max(side // 2, 1)):
            for left in range(0, max(width - side, 0) + 1, max(side // 2, 1)):
                for face in in_window(strict, frame, left, top, side):
                    if all(np.linalg.norm(face[NOSE] - other[NOSE]) > size(other) / 2 for other in faces):
                        faces.append(face)
        side //= 2
    return faces


def in_window(detect: Detect, frame: Array, left: float, top: float, side: float, work: int = 384) -> list[Array]:
    """Faces in a square of the frame, which is continued at its edges and brought to `work` pixels; in the frame's
    own pixels."""
    left, top, side = round(left), round(top), max(round(side), 16)
    rows = np.clip(np.arange(top, top + side), 0, frame.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, frame.shape[1] - 1)
    window = torch.from_numpy(np.ascontiguousarray(frame[rows][:, columns])).movedim(-1, 0)[None]
    # in bytes: fifteen times as fast as in floats, and at most a few levels of 255 from them
    scaled = F.interpolate(window, (work, work), mode="bicubic", antialias=True, align_corners=False)
    pixels = np.ascontiguousarray(scaled[0].movedim(0, -1).numpy())
    return [face * side / work + (left, top) for face in detect(pixels)]


# ---- mediapipe ----


@contextmanager
def landmarker(task: str | Path | None = None, *, faces: int = 4, confidence: float = 0.5) -> Iterator[Detect]:
    """mediapipe's face landmarks: the Tasks API with the user's face_landmarker.task, or `mp.solutions` of 0.10.21 and
    older, which bring their models. Raises UserError where neither is there, and for a file that is no such model."""
    try:
        import mediapipe
    except (ImportError, OSError) as error:
        raise UserError(
            "lip masks need mediapipe",
            got=str(error).splitlines()[0],
            expected="mediapipe >= 1.0, and on Linux libEGL and libGLESv2 (Debian, Ubuntu: libegl1 libgles2)",
            do='pip install "fantasytalking2[lips]", or give masks of your own',
        ) from error
    if task is None and not hasattr(mediapipe, "solutions"):
        raise UserError(
            f"mediapipe {mediapipe.__version__} brings no models",
            got=f"no {TASK}",
            expected=f"the file {TASK} (Apache-2.0, about 4 MB, sha256 {TASK_HASH[:16]}...), "
            "from storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/",
            do="fetch it and give its path",
        )
    make = _solutions if task is None else _tasks
    with make(mediapipe, task, faces, confidence) as detect:
        yield detect


@contextmanager
def _tasks(mediapipe, task, faces: int, confidence: float) -> Iterator[Detect]:
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(check_file(task, "face landmarker"))),
        running_mode=vision.RunningMode.IMAGE,
        num_faces=faces,
        min_face_detection_confidence=confidence,
        min_face_presence_confidence=confidence,
    )

    def detect(frame: Array) -> list[Array]:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        return [_pixels(face, frame) for face in network.detect(image).face_landmarks]

    try:
        network = vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError, OSError) as error:
        expected, do = f"mediapipe's {TASK}, and on Linux libEGL and libGLESv2", "fetch it anew and give its path"
        raise UserError(f"{task} cannot be opened", got=f"{error}"[:200], expected=expected, do=do) from error
    with network:
        yield detect


@contextmanager
def _solutions(mediapipe, task, faces: int, confidence: float) -> Iterator[Detect]:
    def detect(frame: Array) -> list[Array]:
        found = network.process(np.ascontiguousarray(frame)).multi_face_landmarks or []
        return [_pixels(face.landmark, frame) for face in found]

    told = {"static_image_mode": True, "refine_landmarks": True, "max_num_faces": faces}
    with mediapipe.solutions.face_mesh.FaceMesh(**told, min_detection_confidence=confidence) as network:
        yield detect


def _pixels(face, frame: Array) -> Array:
    return np.array([(point.x, point.y) for point in face], np.float64) * frame.shape[1::-1]
