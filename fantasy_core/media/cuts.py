"""Where the picture changes at once: scene cuts, told from neighbouring frames.

A scene begins where the mean difference of two neighbouring frames, shrunk to 64 x 36, in 0..1, exceeds both a
threshold and several times the median difference around it, so that a fast pan or a shaking hand is no cut. Dissolves
and fades are not found. (The usual library for this brings an opencv of its own, which ours would collide with.)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

SMALL = (36, 64)  # rows and columns on which frames are compared
AROUND = 12  # frames before and after, whose median difference is the usual one
SUDDEN = 3.0  # times the usual difference
CHANGE = 0.1  # least mean difference at a cut


def differences(frames: Iterable[tuple[float, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Times [N] and each frame's mean difference [N] in 0..1 to the one before it, from (seconds, [3, H, W])."""
    times, found, last = [], [], None
    for time, frame in frames:
        small = F.adaptive_avg_pool2d(frame, SMALL)
        found.append(0.0 if last is None else float((small - last).abs().mean()))
        times.append(time)
        last = small
    return np.array(times), np.array(found)


def cuts(difference: np.ndarray, threshold: float) -> list[int]:
    """The frames, by number, with which a new scene begins; frame 0 is not among them."""
    found = []
    for index in np.flatnonzero(difference > threshold):
        near = np.concatenate([difference[max(index - AROUND, 1) : index], difference[index + 1 : index + 1 + AROUND]])
        if index and difference[index] > SUDDEN * np.median(near if len(near) else [0.0]):
            found.append(int(index))
    return found
