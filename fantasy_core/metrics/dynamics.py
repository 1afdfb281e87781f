"""SD and BD: how much the subject moves, and how much all else (after FantasyTalking's subject dynamics).

No code was published with these measures; this is our definition. Frames are taken at 8 a second by timestamp and
brought to a short side of 512; between neighbours the optical flow is taken, in pixels.

- `sd`: mean length of the flow inside the subject's mask of the first frame of a pair, mean over pairs.
- `bd`: the same outside the mask.
- `flow_top5`: mean of the longest 5 % of the whole frame, mean over pairs (VBench's form).
- `flow`: mean over the whole frame; in place of sd and bd where there is no mask (`masks=None`).

A pair with a scene cut in between is left out: what changes there has not moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from .contract import Measured, ReadsBeside, Video
from .sampling import at_rate, scenes
from .subject_masks import Masks

Array = np.ndarray
FPS, SHORT, TOP = 8.0, 512, 0.05
LEAST_KNOWN = 0.5  # of the pairs, whose first frame must have a subject
BETTER = {"sd": 1, "bd": 0, "flow": 0, "flow_top5": 0}


class Flow(Protocol):
    """Optical flow. settings: its name and all it depends on. verified: whether it has met its real weights."""

    settings: Mapping[str, object]
    verified: bool

    def between(self, first: Array, second: Array) -> Array:
        """Frames uint8 [H, W, 3] -> where each pixel of the first went, [H, W, 2] (x, y) pixels."""
        ...


class Dynamics:
    """The columns above. flow: `DisFlow()` needs no weights. masks: what the subject is; None: nothing, and the columns
    are not called sd and bd then."""

    name = "dynamics"
    columns: tuple[str, ...]
    better: Mapping[str, int] = BETTER
    verified: bool
    settings: Mapping[str, object]

    def __init__(self, flow: Flow, masks: Masks | None):
        self._flow, self._masks = flow, masks
        self.columns = ("flow", "flow_top5") if masks is None else ("sd", "bd", "flow_top5")
        self.better = {column: BETTER[column] for column in self.columns}
        self.verified = flow.verified and (masks is None or masks.verified)
        told = {"mask": "none"} if masks is None else masks.settings
        self.settings = {**flow.settings, **told, "fps": FPS, "short_side": SHORT, "top": TOP, "cuts": "left out"}

    def beside(self, path: Path) -> Mapping[str, object]:
        """The video's mask, where masks are given."""
        return self._masks.beside(path) if isinstance(self._masks, ReadsBeside) else {}

    def measure(self, video: Video) -> Measured:
        """What cannot be said is None, with the reason: one frame, fewer frames than 8 a second, no subject. Raises
        Unfit where a mask was to be given and is not there."""
        reason = _unfit(video)
        if reason is not None:
            return Measured(dict.fromkeys(self.columns), dict.fromkeys(self.columns, reason))
        taken = at_rate(video, FPS)
        whole = np.diff(scenes(video, taken)) == 0  # of each pair
        if not whole.any():
            return Measured(
                dict.fromkeys(self.columns), dict.fromkeys(self.columns, "a scene cut in every pair of frames")
            )
        flows = self._flows(video.frames, taken, whole)
        masks = None if self._masks is None else self._masks.of(video, taken[:-1][whole])
        return summed(flows, masks)

    def _flows(self, frames: Array, taken: Array, whole: Array):
        """The flow [H, W, 2] of each pair that is whole, one at a time."""
        last = scaled(frames[taken[0]])
        for index, kept in zip(taken[1:], whole, strict=True):
            following = scaled(frames[index])
            if kept:
                yield self._flow.between(last, following)
            last = following


def summed(flows, masks) -> Measured:
    """Columns of the flows of pairs, an iterable of [H, W, 2], with the mask of the subject (bool [h, w], of any size,
    or None where there is none) of each pair's first frame; masks None: without a subject."""
    inside, outside, whole, top = [], [], [], []
    masks = None if masks is None else iter(masks)
    for flow in flows:
        length = np.linalg.norm(np.asarray(flow, np.float64), axis=-1)
        whole.append(length.mean())
        top.append(longest(length))
        mask = None if masks is None else next(masks)
        if mask is not None and mask.any():
            mask = fitted(mask, length.shape)
            inside.append(length[mask].mean() if mask.any() else np.nan)
            outside.append(length[~mask].mean() if not mask.all() else np.nan)
    values: dict[str, float | None] = {"flow_top5": float(np.mean(top))}
    if masks is None:
        return Measured({"flow": float(np.mean(whole)), **values})
    return _of_subject(inside, outside, len(whole), values)


def _of_subject(inside: list, outside: list, pairs: int, values: dict[str, float | None]) -> Measured:
    if len(inside) < LEAST_KNOWN * pairs or not np.isfinite(inside).any():
        reason = f"a subject in {len(inside)} of {pairs} frames, {LEAST_KNOWN:.0%} are needed"
        return Measured({"sd": None, "bd": None, **values}, {"sd": reason, "bd": reason})
    values = {"sd": float(np.nanmean(inside)), **values}
    if not np.isfinite(outside).any():
        return Measured({**values, "bd": None}, {"bd": "the subject fills the frame"})
    return Measured({**values, "bd": float(np.nanmean(outside))})


def longest(length: Array) -> float:
    """The mean of the longest 5 % of lengths [H, W], one at the least."""
    count = max(int(length.size * TOP), 1)
    return float(np.partition(length.ravel(), -count)[-count:].mean())


def scaled(frame: Array, short: int = SHORT) -> Array:
    """A frame uint8 [H, W, 3] with its short side at `short` pixels."""
    height, width = frame.shape[:2]
    factor = short / min(height, width)
    size = (round(height * factor), round(width * factor))
    if size == (height, width):
        return np.ascontiguousarray(frame)
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).movedim(-1, 0)[None]
    found = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(found[0].movedim(0, -1).numpy())


def fitted(mask: Array, size: tuple[int, ...]) -> Array:
    """A mask bool [h, w], at `size`: each pixel what lies at its middle."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask.shape, strict=True))
    return mask[rows][:, columns]


def _unfit(video: Video) -> str | None:
    if len(video.frames) < 2 or video.times[-1] <= video.times[0]:
        return f"{len(video.frames)} frame{'' if len(video.frames) == 1 else 's'}, no video"
    if video.fps < FPS:
        return f"{video.fps:.3g} frames a second, {FPS:g} are needed"
    return None if len(at_rate(video, FPS)) > 1 else f"shorter than two frames at {FPS:g} a second"
