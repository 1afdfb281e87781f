"""Hands by DWPose or RTMPose-wholebody: a person detector (YOLOX) and a pose network, both ONNX files of the user's.

Both are run by onnxruntime and decoded here. The detector sees the frame, blue first, in 0..255, shrunk into the upper
left of its grey input; of the persons that it is sure of the one with the largest box counts. The pose network sees
that box, 1.25 times as large and 3 by 4, red first and normalised as it was trained, and answers with a line of
likelihoods for each axis of 133 keypoints (SimCC), two bins a pixel. A keypoint's score is the lower of its two peaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..manifest import sha256
from ..media import check_file
from .hands import Hands

Array = np.ndarray
PERSON, SURE, SAME = 0, 0.3, 0.45  # class; least score of a person; overlap of boxes that are one
STRIDES, GREY = (8, 16, 32), 114
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MARGIN, BINS, POINTS = 1.25, 2, 133
LEFT, RIGHT = slice(91, 112), slice(112, 133)  # of COCO-WholeBody
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DwPose:
    """Hands of the largest person. detector: yolox_l.onnx; pose: dw-ll_ucoco_384.onnx or rtmw/rtmpose-wholebody."""

    scored = True
    settings: Mapping[str, object]

    def __init__(self, detector: str | Path, pose: str | Path, *, device: str = "cpu"):
        self._files = check_file(detector, "detector of persons"), check_file(pose, "whole-body pose network")
        if device not in PROVIDERS:
            do = "name one of these"
            raise UserError("the device cannot be used", got=device, expected=" or ".join(PROVIDERS), do=do)
        self._device = device
        self.settings = {
            "detector": "dwpose",
            "person_weights": self._files[0].name,
            "person_weights_sha256": sha256(self._files[0]),
            "pose_weights": self._files[1].name,
            "pose_weights_sha256": sha256(self._files[1]),
            "least_person_score": SURE,
            "person": "largest box",
            "keypoint_score": "lower peak of SimCC",
            **({} if device == "cpu" else {"device": device}),
        }

    @contextmanager
    def open(self) -> Iterator[Hands]:
        """Raises UserError without onnxruntime, and for networks of another layout."""
        persons, pose = (session(file, self._device) for file in self._files)
        side, (height, width) = check_detector(persons, self._files[0]), check_pose(pose, self._files[1])

        def hands(frame: Array) -> Array:
            box = largest(persons, frame, side)
            if box is None:
                return np.full((2, 21, 3), np.nan)
            picture, origin, scale = person(frame, box, height, width)
            found = decoded(*run(pose, picture)) * (scale, scale, 1) + (*origin, 0)
            return np.stack([found[LEFT], found[RIGHT]])

        yield hands


def session(file: Path, device: str):
    """An ONNX file, ready to run. Raises UserError without onnxruntime, and for a file that is none."""
    try:
        import onnxruntime
    except ImportError as error:
        do = 'pip install "fantasytalking2[hands]", or use mediapipe'
        raise UserError("DWPose needs onnxruntime", got=str(error), expected="onnxruntime", do=do) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[PROVIDERS[device]])
    except Exception as error:  # onnxruntime's own, of many kinds
        got = str(error).splitlines()[0][:200]
        do = "fetch the file again, or check that the device is there"
        raise UserError(f"{file.name} cannot be opened", got=got, expected="an ONNX network", do=do) from error


def run(network, picture: Array) -> list[Array]:
    """The outputs for one picture [3, H, W]."""
    return network.run(None, {network.get_inputs()[0].name: picture[None].astype(np.float32)})


# ---- persons ----


def check_detector(network, file: Path) -> tuple[int, int]:
    """Height and width of a YOLOX's input. Raises UserError for another network."""
    (given, *more), first = network.get_inputs(), network.get_outputs()[0].shape
    usual = "images [1, 3, 640, 640] -> [1, 8400, 85], or boxes [1, n, 5]"
    sides = given.shape[2:]
    if more or len(sides) != 2 or not all(isinstance(side, int) and side % STRIDES[-1] == 0 for side in sides):
        raise _foreign(file, network, usual, "yolox_l.onnx")
    cells = sum((sides[0] // stride) * (sides[1] // stride) for stride in STRIDES)
    if len(first) != 3 or not (first[2] == 5 or (first[1] == cells and first[2] > 5)):
        raise _foreign(file, network, usual, "yolox_l.onnx")
    return tuple(sides)


def largest(network, frame: Array, side: tuple[int, int]) -> Array | None:
    """The largest person's box (left, top, right, bottom) in the frame's pixels, or None."""
    picture, ratio = letterbox(frame, side)
    found = run(network, picture)
    boxes = chosen(found) if found[0].shape[-1] == 5 else persons_in(found[0][0], side)
    if not len(boxes):
        return None
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return boxes[(widths * heights).argmax()] / ratio


def letterbox(frame: Array, side: tuple[int, int]) -> tuple[Array, float]:
    """A frame uint8 [H, W, 3] blue first in the upper left of a grey picture [3, *side], and by how much it shrank."""
    ratio = min(side[0] / frame.shape[0], side[1] / frame.shape[1])
    size = int(frame.shape[0] * ratio), int(frame.shape[1] * ratio)
    small = F.interpolate(_pixels(frame).flip(1), size, mode="bilinear", align_corners=False)[0]
    picture = np.full((3, *side), GREY, np.float32)
    picture[:, : size[0], : size[1]] = small.round().numpy()
    return picture, ratio


def persons_in(raw: Array, side: tuple[int, int]) -> Array:
    """Boxes [n, 4] of sure persons, in pixels of the input, from the network's raw answers [8400, 5 + classes]: offset
    from a grid of cells and logarithm of the size in cells, likelihood of a thing, likelihoods of the classes."""
    cells, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: side[0] // stride, : side[1] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], 1))
        strides.append(np.full((rows.size, 1), stride))
    stride = np.concatenate(strides)
    middle, half = (raw[:, :2] + np.concatenate(cells)) * stride, np.exp(raw[:, 2:4]) * stride / 2
    classes = raw[:, 4:5] * raw[:, 5:]
    sure = (classes.argmax(1) == PERSON) & (classes[:, PERSON] > SURE)
    return suppressed(np.concatenate([middle - half, middle + half], 1)[sure], classes[sure, PERSON])


def chosen(found: list[Array]) -> Array:
    """The same from a network that suppresses by itself: boxes and scores [1, n, 5], classes [1, n] where there are."""
    boxes = found[0][0]
    sure = boxes[:, 4] > SURE
    return boxes[sure & (found[1][0] == PERSON) if len(found) > 1 else sure, :4]


def suppressed(boxes: Array, scores: Array) -> Array:
    """Boxes [n, 4] without those that overlap a likelier one by more than 0.45 of both together."""
    kept = []
    for box in boxes[scores.argsort()[::-1]]:
        if all(_overlap(box, other) <= SAME for other in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 4)


def _overlap(one: Array, other: Array) -> float:
    inside = np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None).prod()
    return inside / max((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - inside, 1e-9)


# ---- keypoints ----


def check_pose(network, file: Path) -> tuple[int, int]:
    """Height and width of a SimCC network's input. Raises UserError for another network."""
    (given, *more), outputs = network.get_inputs(), [output.shape for output in network.get_outputs()]
    expected = "input [1, 3, H, W] -> simcc_x [1, 133, 2 W], simcc_y [1, 133, 2 H]"
    if more or len(given.shape) != 4 or not all(isinstance(side, int) for side in given.shape[2:]):
        raise _foreign(file, network, expected, "dw-ll_ucoco_384.onnx")
    height, width = given.shape[2:]
    if [shape[1:] for shape in outputs] != [[POINTS, BINS * width], [POINTS, BINS * height]]:
        raise _foreign(file, network, expected, "dw-ll_ucoco_384.onnx")
    return height, width


def person(frame: Array, box: Array, height: int, width: int) -> tuple[Array, Array, float]:
    """What the pose network sees of a box: (picture [3, height, width], x and y of its corner in the frame, pixels of
    the frame in one of it)."""
    middle, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * MARGIN
    scale = max(size[0] / width, size[1] / height)
    origin = middle - np.array([width, height]) * scale / 2
    x = torch.from_numpy((origin[0] + np.arange(width) * scale) * 2 / max(frame.shape[1] - 1, 1) - 1)
    y = torch.from_numpy((origin[1] + np.arange(height) * scale) * 2 / max(frame.shape[0] - 1, 1) - 1)
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)[None].float()
    seen = F.grid_sample(_pixels(frame), grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]
    return (seen.numpy() - np.array(MEAN)[:, None, None]) / np.array(DEVIATION)[:, None, None], origin, float(scale)


def decoded(simcc_x: Array, simcc_y: Array) -> Array:
    """Keypoints [133, 3] (x, y, score) in pixels of the input, from likelihoods [1, 133, bins] of each axis."""
    places = [axis[0].argmax(1) / BINS for axis in (simcc_x, simcc_y)]
    return np.stack([*places, np.minimum(simcc_x[0].max(1), simcc_y[0].max(1))], 1).astype(np.float64)


def _pixels(frame: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame)).movedim(-1, 0)[None].float()


def _foreign(file: Path, network, expected: str, usual: str) -> UserError:
    shapes = [[list(one.shape) for one in side] for side in (network.get_inputs(), network.get_outputs())]
    return UserError(
        f"{file.name} has another layout", got=f"{shapes[0]} -> {shapes[1]}", expected=expected, do=f"use {usual}"
    )
