"""Drawn faces of known truth: landmarks in mediapipe's order, and a detector that reads them from pictures."""

from __future__ import annotations

import numpy as np
import torch

from fantasy_core.lips import OUTER_LIPS

MOST = 8.0  # pixels, of its mouth's opening


def face(x: float = 60.0, y: float = 60.0, half: float = 20.0, opening: float = 0.0, nose: float = 0.0) -> np.ndarray:
    """A drawn face: points on a circle, lips an ellipse of half the radius, a gap between the inner lips."""
    points = np.zeros((478, 2))
    angle = np.arange(478) * 2.399963  # spread evenly
    points[:] = np.stack([np.cos(angle), np.sin(angle)], 1) * half * np.sqrt(np.arange(478) / 478)[:, None]
    ring = np.linspace(0, 2 * np.pi, len(OUTER_LIPS), endpoint=False)
    points[OUTER_LIPS] = np.stack([-np.cos(ring) * half / 2, 0.5 * half + np.sin(ring) * half / 5], 1)
    for upper, lower in ((13, 14), (82, 87), (312, 317)):
        points[upper], points[lower] = (0, 0.5 * half - opening / 2), (0, 0.5 * half + opening / 2)
    points[33], points[263] = (-half / 2, -half / 3), (half / 2, -half / 3)
    points[234], points[454], points[1] = (-half, 0), (half, 0), (nose * half, 0)
    return points + (x, y)


def speaking_faces(openings: np.ndarray, size: int = 32) -> np.ndarray:
    """Frames uint8 [T, size, size, 3] of openings [T] in 0..1: the first pixel says it; 0 is a frame without a face."""
    frames = np.full((len(openings), size, size, 3), 127, np.uint8)
    frames[:, 0, 0] = np.clip(1 + np.round(254 * np.asarray(openings)), 1, 255).astype(np.uint8)[:, None]
    return frames


def reads_first_pixel(frame: np.ndarray) -> list[np.ndarray]:
    """The face of a frame of `speaking_faces`, in any frame that shows its first pixel; none in one that is black
    there, nor in windows of other sizes."""
    if frame.shape[0] > 64 or not frame[0, 0, 0]:
        return []
    return [face(16, 16, 12, opening=(float(frame[0, 0, 0]) - 1) / 254 * MOST)]


def ellipse(high: float, wide: float, size: int = 128) -> torch.Tensor:
    """A mask [size, size] of an ellipse of these half axes."""
    y, x = torch.meshgrid(torch.arange(size) - size / 2 + 0.3, torch.arange(size) - size / 2, indexing="ij")
    return ((x / wide) ** 2 + (y / high) ** 2 <= 1).float()
