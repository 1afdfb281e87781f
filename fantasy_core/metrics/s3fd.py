"""S3FD (Zhang et al. 2017), the face detector of SyncNet's reference, in the layout of `sfd_face.pth`.

As there: the picture at a quarter of its size, faces likelier than 0.9. The reference finds some faces half a pixel
elsewhere, since OpenCV rounds otherwise when it scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .face_tracks import Box, Faces
from .networks import Network

Array = np.ndarray
MEAN = (123.0, 117.0, 104.0)  # red, green, blue
SCALE, LIKELY, CANDIDATE = 0.25, 0.9, 0.05
SAME, SAME_FACE = 0.3, 0.1  # overlap of boxes that are one: among candidates, among faces
STEPS, SIDES = (4, 8, 16, 32, 64, 128), (16, 32, 64, 128, 256, 512)  # of each source: of a cell, of its prior box
VARIANCES = 0.1, 0.2
WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
NORMED = {16: "L2Norm3_3", 23: "L2Norm4_3", 30: "L2Norm5_3"}  # sources after so many layers
BACKGROUNDS = 3  # of the finest source, the likeliest of which counts (max-out)


class ChannelNorm(nn.Module):
    """Every pixel's channels at length 1, times a learnt weight."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[:, None, None] * x / (x.norm(dim=1, keepdim=True) + 1e-10)


class S3fdModel(nn.Module):
    """Logits and places of faces on six grids."""

    def __init__(self):
        super().__init__()
        self.vgg = nn.ModuleList(_backbone())
        self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3 = ChannelNorm(256), ChannelNorm(512), ChannelNorm(512)
        self.extras = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
            for inputs, outputs, kernel, stride in (
                (1024, 256, 1, 1),
                (256, 512, 3, 2),
                (512, 128, 1, 1),
                (128, 256, 3, 2),
            )
        )
        inputs = (256, 512, 512, 1024, 512, 256)
        self.loc = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1) for n in inputs)
        self.conf = nn.ModuleList(nn.Conv2d(n, 2 if k else BACKGROUNDS + 1, 3, padding=1) for k, n in enumerate(inputs))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """x [1, 3, H, W], red first, less `MEAN` -> six of places [4, h, w] and of likelihoods [h, w]."""
        sources = self._sources(x)
        places = [head(source)[0] for head, source in zip(self.loc, sources, strict=True)]
        logits = [head(source)[0] for head, source in zip(self.conf, sources, strict=True)]
        return places, [(each[-1] - each[:-1].amax(0)).sigmoid() for each in logits]  # = softmax of the two

    def _sources(self, x: Tensor) -> list[Tensor]:
        sources = []
        for number, layer in enumerate(self.vgg):
            if number in NORMED:
                sources.append(getattr(self, NORMED[number])(x))
            x = layer(x)
        sources.append(x)
        for number, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            sources += [x] if number % 2 else []
        return sources


def _backbone() -> list[nn.Module]:
    """VGG-16, then fc6 and fc7 as convolutions. The third pool keeps odd edges."""
    layers, inputs, pools = [], 3, 0
    for width in WIDTHS:
        if width == "M":
            pools += 1
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=pools == 3))
        else:
            layers += [nn.Conv2d(inputs, int(width), 3, padding=1), nn.ReLU()]
            inputs = int(width)
    return [*layers, nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU()]


def _halving(inputs: int, inner: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, inner, 1), nn.Conv2d(inner, outputs, 3, stride=2, padding=1)]


def boxes_of(places: list[Tensor], likely: list[Tensor], least: float = CANDIDATE) -> tuple[Array, Array]:
    """Boxes [n, 4] in pixels and likelihoods [n] above `least` of all grids, from what the network gives.

    A cell's prior box is a square around its middle, four cells wide; places are how far the middle lies from there in
    tenths of the side, and the logarithms of width and height in fifths.
    """
    boxes, scores = [], []
    for place, score, step, side in zip(places, likely, STEPS, SIDES, strict=True):
        rows, columns = (score > least).nonzero(as_tuple=True)
        middle = torch.stack([columns, rows], 1) * step + step / 2
        told = place[:, rows, columns].T  # [n, 4]
        middle = middle + told[:, :2] * VARIANCES[0] * side
        half = side * (told[:, 2:] * VARIANCES[1]).exp() / 2
        boxes.append(torch.cat([middle - half, middle + half], 1))
        scores.append(score[rows, columns])
    return torch.cat(boxes).double().cpu().numpy(), torch.cat(scores).double().cpu().numpy()


def likeliest(boxes: Array, scores: Array, same: float) -> Array:
    """Which boxes [n, 4] stay, the likeliest first: those that overlap none that stays by more than `same`."""
    order, kept = scores.argsort(kind="stable")[::-1], []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        inside = np.minimum(boxes[first, 2:], boxes[order, 2:]) - np.maximum(boxes[first, :2], boxes[order, :2])
        inside = inside.clip(0).prod(1)
        order = order[inside <= same * (areas[first] + areas[order] - inside)]
    return np.array(kept, int)


def find(network: S3fdModel, frame: Array, device: str = "cpu") -> list[Box]:
    """Faces in a frame uint8 [H, W, 3]."""
    height, width = frame.shape[:2]
    size = (max(round(height * SCALE), 1), max(round(width * SCALE), 1))
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).movedim(-1, 0)[None].float()
    small = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round()
    with torch.inference_mode():
        told = network((small - torch.tensor(MEAN)[:, None, None]).to(device))
    boxes, scores = boxes_of(*told)
    for same, least in ((SAME, LIKELY), (SAME_FACE, LIKELY)):
        stay = likeliest(boxes, scores, same)
        boxes, scores = boxes[stay][scores[stay] > least], scores[stay][scores[stay] > least]
    scale = np.array([width / size[1], height / size[0]] * 2)
    return [tuple(map(float, box)) for box in boxes * scale]


@contextmanager
def s3fd_faces(weights: str | Path, device: str = "cpu") -> Iterator[Faces]:
    """Finds the boxes of a frame. weights: `sfd_face.pth`. Raises UserError for weights of another model."""
    network = Network(S3fdModel, weights, "S3FD", device).open()
    yield lambda frame: find(network, frame, device)
