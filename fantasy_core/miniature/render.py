"""The cartoon portrait: a smooth, differentiable renderer of an identity in a pose.

Everything a picture shows is a known number, which is what lets `judge.py` read head, lips and lids back out of any
video of this world. Coordinates run from -1 to 1, x to the right, y down. Shapes are ellipses with soft edges about a
pixel wide, painted back to front; a pose moves the features a little more than the head, which looks like turning.

Shape letters: B batch, T frames, S pixels a side. Not in the paper: the miniature is this project's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

SIZE = 64  # pixels a side
SLIVER = 0.03  # about a pixel, in coordinates
FAINT = 1e-6  # a cropped shape is left out beyond the distance at which it covers this much

COLOURS = ("skin", "hair", "shirt", "background", "backdrop", "lip", "iris")
SHAPES = (
    "face_rx", "face_ry", "eye_dx", "eye_y", "eye_r", "mouth_y", "mouth_rx",
    "hairline", "hair_volume", "hair_length", "brow", "nose",
)  # fmt: skip
IDENTITY = 3 * len(COLOURS) + len(SHAPES)  # numbers of an identity
POSE = ("x", "y", "open", "wide", "lid")  # head position, mouth opening and width, lids (1 = open eyes)

MOUTH_DARK = (0.24, 0.05, 0.07)
TEETH = (0.95, 0.93, 0.90)
TONGUE = (0.72, 0.30, 0.32)
EYE_WHITE = (0.97, 0.97, 0.96)
PUPIL = (0.05, 0.05, 0.07)
HIGHLIGHT = (1.0, 1.0, 1.0)
CHEEK = (0.92, 0.45, 0.42)


class Identity:
    """Named views of an identity vector [B, IDENTITY], each shaped to meet pixels [B, T, S, S] or [B, T, 3, S, S]."""

    def __init__(self, vector: Tensor):
        self.vector = vector

    def __getattr__(self, name: str) -> Tensor:
        if name in COLOURS:
            start = 3 * COLOURS.index(name)
            view = self.vector[:, start : start + 3].view(-1, 1, 3, 1, 1)
        elif name in SHAPES:
            view = self.vector[:, 3 * len(COLOURS) + SHAPES.index(name)].view(-1, 1, 1, 1)
        else:
            raise AttributeError(name)
        return self.__dict__.setdefault(name, view)


Window = tuple[slice, slice]  # rows and columns of a picture


class Canvas:
    """The grid that soft shapes are drawn on. A shape is its alpha [B, T, S, S], made for poses [B, T, 1, 1]."""

    def __init__(self, size: int, like: Tensor, cropped: bool = False):
        axis = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size * 2 - 1
        self.x, self.y = axis.view(1, 1, 1, size), axis.view(1, 1, size, 1)
        self.sharpness, self.size, self.cropped = 0.75 * size, size, cropped
        self.window: Window = (slice(0, size), slice(0, size))

    def around(self, cx, cy, rx, ry) -> Canvas:
        """The part of a cropped canvas where an ellipse can be seen in any frame.

        What is left out has an alpha below FAINT; beside flat ellipses, whose distance is poor there, up to 2e-4.
        """
        if not self.cropped:
            return self
        reach = -math.log(FAINT) / self.sharpness
        part = copy.copy(self)
        height = ry.clamp_min(SLIVER) if isinstance(ry, Tensor) else ry
        part.window = (self.span(cy, height + reach), self.span(cx, rx + reach))
        part.x, part.y = self.x[..., part.window[1]], self.y[:, :, part.window[0]]
        return part

    def span(self, centre: Tensor, reach: Tensor | float) -> slice:
        """The pixels of an axis within `reach` of `centre`, in any frame."""
        low, high = float((centre - reach).min()), float((centre + reach).max())
        first, last = ((end + 1) / 2 * self.size - 0.5 for end in (low, high))
        return slice(max(math.ceil(first), 0), min(math.floor(last) + 1, self.size))

    def ellipse(self, cx, cy, rx, ry) -> Tensor:
        """Soft inside of an ellipse, by the first-order distance to its edge.

        That distance is poor around slivers: one flatter than a pixel is drawn a pixel high and fainter instead.
        """
        fade = None
        if isinstance(ry, Tensor):
            ry, fade = ry.clamp_min(SLIVER), (ry / SLIVER).clamp(max=1)
        dx, dy = (self.x - cx) / rx, (self.y - cy) / ry  # [B, T, 1, S], [B, T, S, 1]
        ux, uy = dx / rx, dy / ry
        radius = (dx * dx + dy * dy).add_(1e-6).sqrt_()
        slope = (ux * ux + uy * uy).add_(1e-6).sqrt_()
        alpha = (1 - radius).mul_(radius).div_(slope).mul_(self.sharpness).sigmoid_()
        return alpha if fade is None else alpha * fade

    def shape(self, colour, cx, cy, rx, ry, strength: float = 1) -> Layer:
        """A layer of one ellipse."""
        near = self.around(cx, cy, rx, ry)
        alpha = near.ellipse(cx, cy, rx, ry)
        return alpha if strength == 1 else alpha * strength, colour, near.window

    def below(self, line) -> Tensor:
        """Soft half plane: 1 where y is greater than `line`."""
        return torch.sigmoid((self.y - line) * self.sharpness)


# alpha [B, T, h, w], colour ([B, 1, 3, 1, 1] or rgb) and where in the picture the alpha lies
Layer = tuple[Tensor, Tensor | tuple[float, float, float], Window]


def paint(image: Tensor, layers: Iterable[Layer]) -> Tensor:
    """Lay the colours of `layers` over image [B, T, 3, S, S] where their alphas say -> a new image."""
    painted = image
    for alpha, colour, (rows, columns) in layers:
        if isinstance(colour, tuple):
            colour = image.new_tensor(colour).view(1, 1, 3, 1, 1)
        if painted is image:  # the caller's image is left as it is
            painted = image.clone(memory_format=torch.contiguous_format)
        painted[..., rows, columns].lerp_(colour, alpha.unsqueeze(2))
    return painted


def bust(canvas: Canvas, who: Identity, x: Tensor, y: Tensor) -> Iterator[Layer]:
    """Everything behind the face: long hair, neck, shoulders, the volume of the hair, ears."""
    yield canvas.shape(who.hair, x, y + 0.12 + who.hair_length, who.face_rx * 1.22, who.face_ry * 1.02)
    yield canvas.shape(0.82 * who.skin, 0.6 * x, y + 0.62, 0.17, 0.34)
    yield canvas.shape(who.shirt, 0.4 * x, 1.18 + 0.4 * y, 0.80, 0.46)
    yield canvas.shape(0.86 * who.skin, 0.5 * x, 0.70 + 0.5 * y, 0.15, 0.12)
    yield canvas.shape(who.hair, x, y - 0.07, who.face_rx * who.hair_volume, who.face_ry * 1.09)
    for side in (-1, 1):
        yield canvas.shape(0.88 * who.skin, x + side * who.face_rx, y + 0.05, 0.06, 0.10)


def head(canvas: Canvas, who: Identity, x: Tensor, y: Tensor, opening: Tensor) -> Iterator[Layer]:
    """Face (the jaw drops with the mouth), light from the left, fringe."""
    oval = x, y + 0.04 + 0.025 * opening, who.face_rx, who.face_ry + 0.025 * opening
    near = canvas.around(*oval)
    face = near.ellipse(*oval)
    yield face, who.skin, near.window
    yield face * torch.sigmoid((near.x - x - 0.22) * 6) * 0.35, 0.78 * who.skin, near.window
    fringe = 1 - near.below(y + who.hairline + 0.5 * (near.x - x + 0.12) ** 2)
    yield face * fringe, who.hair, near.window


def eyes(canvas: Canvas, who: Identity, x: Tensor, y: Tensor, lid: Tensor) -> Iterator[Layer]:
    """Whites, irises, pupils and a highlight inside the open lids, a lash line, brows and a nose."""
    eye_y, r = y + who.eye_y, who.eye_r
    for side in (-1, 1):
        cx = x + side * who.eye_dx
        opened = cx, eye_y, r * 1.15, r * (0.10 + 0.80 * lid)
        near = canvas.around(*opened)
        inside = near.ellipse(*opened)
        yield canvas.shape(0.45 * who.hair, cx, eye_y - 0.012, r * 1.28, r * (0.22 + 0.84 * lid))
        yield inside, EYE_WHITE, near.window
        yield inside * near.ellipse(cx, eye_y, r * 0.66, r * 0.66), who.iris, near.window
        yield inside * near.ellipse(cx, eye_y, r * 0.34, r * 0.34), PUPIL, near.window
        yield inside * near.ellipse(cx - 0.25 * r, eye_y - 0.28 * r, r * 0.22, r * 0.22), HIGHLIGHT, near.window
        yield canvas.shape(0.7 * who.hair, cx, eye_y - r * 1.35 - 0.02 * lid, r * 1.25, who.brow)
        yield canvas.shape(CHEEK, cx + side * 0.05, y + who.mouth_y - 0.10, 0.10, 0.07, 0.28)
    yield canvas.shape(0.72 * who.skin, x + 0.012, y + 0.5 * (who.eye_y + who.mouth_y), who.nose, 0.055, 0.55)


def mouth(canvas: Canvas, who: Identity, x: Tensor, y: Tensor, opening: Tensor, wide: Tensor) -> Iterator[Layer]:
    """Lips around a dark opening with upper teeth and a tongue. Opening 0 is a closed mouth, 1 a wide open one."""
    centre, rx, ry = y + who.mouth_y + 0.03 * opening, who.mouth_rx * (0.72 + 0.58 * wide), 0.012 + 0.135 * opening
    yield canvas.shape(who.lip, x, centre, rx + 0.045, ry + 0.050)
    near = canvas.around(x, centre, rx, ry)
    inside = near.ellipse(x, centre, rx, ry)
    yield inside, MOUTH_DARK, near.window
    yield inside * near.ellipse(x, centre + 0.85 * ry + 0.02, rx * 0.72, 0.6 * ry + 0.01), TONGUE, near.window
    yield inside * (1 - near.below(centre - 0.45 * ry)), TEETH, near.window


def background(identity: Tensor, pose: Tensor, size: int = SIZE) -> Tensor:
    """The wall behind everybody, lit from above -> [B, T, 3, size, size]."""
    who = Identity(identity)
    shade = ((torch.arange(size, dtype=pose.dtype, device=pose.device) + 0.5) / size).view(1, 1, 1, size, 1)
    return torch.lerp(who.background, who.backdrop, shade).expand(pose.shape[0], pose.shape[1], 3, size, size)


def stages(identity: Tensor, pose: Tensor, size: int = SIZE, cropped: bool = False) -> tuple[Iterator[Layer], ...]:
    """What is painted on the background, back to front: bust, head, eyes, mouth. A layer is made when it is asked for.

    The bust follows (x, y) alone, the head `open` too, the eyes (x, y) and `lid`, the mouth (x, y), `open` and `wide`.
    `cropped`: shapes are drawn only where they can be seen, which is sooner done and moves no pixel by more than 2e-4,
    a twentieth of a step of an 8-bit video.
    """
    who, canvas = Identity(identity), Canvas(size, pose, cropped)
    x, y, opening, wide, lid = (pose[..., i, None, None] for i in range(5))  # [B, T, 1, 1]
    y = y - 0.08
    turned_x, turned_y = 1.25 * x, y + 0.25 * (y + 0.08)
    return (
        bust(canvas, who, x, y),
        head(canvas, who, x, y, opening),
        eyes(canvas, who, turned_x, turned_y, lid),
        mouth(canvas, who, turned_x, turned_y, opening, wide),
    )


def render(identity: Tensor, pose: Tensor, size: int = SIZE) -> Tensor:
    """Draw `identity` [B, IDENTITY] in every `pose` [B, T, 5] (order `POSE`) -> video [B, T, 3, size, size] in 0..1."""
    return paint(background(identity, pose, size), chain(*stages(identity, pose, size)))


def mouth_box(size: int = SIZE) -> Tensor:
    """[size, size] in {0, 1}: where a mouth of this world can be. Not a lip mask of a frame: a region for weights."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    return ((axis.abs() < 0.5)[None, :] & ((axis > 0.0) & (axis < 0.62))[:, None]).float()
