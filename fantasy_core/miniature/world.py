"""The tiny world: people, their movements, their speech, and clips in which all of it is known.

A *seed* is an endless stream of clips; seeds 0-99 are for training, 100-199 for validation, 200-299 for test, and
900-999 are never used by this project, so that anybody can check it on data it has not seen. The world is frozen:
changing it makes every published figure of the miniature void.

Clips for training are half-spoiled, so that preferences have something to align: each of lip sync, motion and quality
is spoiled independently in a share of the clips. Held-out clips are clean. Not in the paper.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .render import render
from .speech import RATE, features, speak

FPS = 23.0
TRAIN, VALIDATION, TEST = range(0, 100), range(100, 200), range(200, 300)
SPOILED = {"ls": 0.30, "mn": 0.30, "vq": 0.25}  # share of training clips in which a dimension is spoiled


@dataclass
class Clip:
    """A clip of T frames: identity [K], pose [T, 5], mouth [T, 2] (what the voice asks for), waveform [n], flaws."""

    identity: Tensor
    pose: Tensor
    mouth: Tensor
    waveform: np.ndarray
    spoiled: tuple[str, ...]
    damage: np.random.Generator | None  # state from which the quality flaw is drawn

    def video(self) -> Tensor:
        """Frames [T, 3, S, S] in 0..1, with the quality flaw if there is one. Frame 0, the portrait,
        is always clean."""
        clean = render(self.identity[None], self.pose[None])[0]
        return clean if self.damage is None else spoil_quality(clean, deepcopy(self.damage))

    def features(self) -> Tensor:
        """Audio features of the clip's voice [1, L, C]."""
        return features(self.waveform)


def draw_identity(rng: np.random.Generator) -> Tensor:
    """A random person [K]: natural skin and hair, any shirt and wall, and a face of their own."""
    tone, warmth = rng.uniform(0.12, 1.0), rng.uniform(-0.03, 0.03)
    skin = np.array([0.42 + 0.53 * tone, 0.26 + 0.52 * tone + warmth, 0.17 + 0.50 * tone - warmth])
    hair = np.array([[0.10, 0.08, 0.08], [0.30, 0.18, 0.11], [0.46, 0.28, 0.14], [0.80, 0.62, 0.33], [0.58, 0.24, 0.12],
                     [0.62, 0.61, 0.62]])[rng.integers(6)] * rng.uniform(0.85, 1.15)  # fmt: skip
    shirt, wall = rng.uniform(0.12, 0.92, 3), rng.uniform(0.35, 0.95, 3)
    backdrop = np.clip(wall * rng.uniform(0.60, 0.95), 0, 1)
    lip = np.clip(skin * [0.92, 0.58, 0.60] + rng.uniform(-0.04, 0.06, 3), 0, 1)
    iris = np.array([[0.30, 0.18, 0.09], [0.22, 0.42, 0.60], [0.25, 0.45, 0.28], [0.38, 0.40, 0.43]])[rng.integers(4)]
    long_hair = rng.random() < 0.5
    shape = [
        rng.uniform(0.36, 0.43), rng.uniform(0.47, 0.54), rng.uniform(0.150, 0.185), rng.uniform(-0.06, 0.01),
        rng.uniform(0.075, 0.098), rng.uniform(0.26, 0.31), rng.uniform(0.125, 0.165),
        rng.uniform(-0.36, -0.24), rng.uniform(1.08, 1.24), rng.uniform(0.10, 0.34) if long_hair else -0.25,
        rng.uniform(0.014, 0.028), rng.uniform(0.025, 0.045),
    ]  # fmt: skip
    return torch.from_numpy(np.concatenate([skin, hair, shirt, wall, backdrop, lip, iris, shape]).astype(np.float32))


def head_path(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth head movement [frames, 2]: a slow and a quicker sway on each axis with random phases."""
    t = np.arange(frames)[:, None] / FPS
    slow = np.sin(2 * np.pi * rng.uniform(0.20, 0.45, 2) * t + rng.uniform(0, 2 * np.pi, 2))
    quick = np.sin(2 * np.pi * rng.uniform(0.6, 1.0, 2) * t + rng.uniform(0, 2 * np.pi, 2))
    return rng.uniform(0.06, 0.13) * (0.8 * slow + 0.3 * quick) * [1.0, 0.6]


def blinks(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Lids [frames]: 1 open; a blink of about five frames every two to five seconds."""
    lid, when = np.ones(frames), rng.uniform(0.3, 3.0) * FPS
    while when < frames:
        lid = np.minimum(lid, np.clip(np.abs(np.arange(frames) - when) / 2.4, 0, 1) ** 2)
        when += rng.uniform(2.0, 5.0) * FPS
    return lid


def sentence(frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`frames` of speech, begun anywhere in a sentence -> waveform [n], mouth [frames, 2]."""
    skip = int(rng.integers(0, 24))  # in frames
    spoken = speak((skip + frames) / FPS, rng)
    return spoken.waveform[round(skip / FPS * RATE) :], spoken.mouth_at(FPS, frames, skip)


def spoil_motion(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A frozen or a trembling head. Frame 0 stays where it was."""
    if rng.random() < 0.5:
        return path[:1] + 0.08 * (path - path[:1])
    tremble = rng.normal(0, 0.03, path.shape)
    tremble[0] = 0
    return path + tremble


def spoil_quality(video: Tensor, rng: np.random.Generator) -> Tensor:
    """Lost focus or flickering stains, from frame 1 on, on video [T, 3, S, S]."""
    onset = torch.linspace(0, 1, len(video)).mul(6).clamp(max=1).view(-1, 1, 1, 1)
    if rng.random() < 0.5:
        soft = F.avg_pool2d(F.pad(video, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return torch.lerp(video, F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1), onset)
    stains = torch.from_numpy(rng.standard_normal((len(video), 3, 8, 8)).astype(np.float32))
    return (video + 0.03 * onset * F.interpolate(stains, video.shape[-2:], mode="bilinear")).clamp(0, 1)


def pose_of(path: np.ndarray, mouth: np.ndarray, lid: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([path, mouth, lid[:, None]], 1).astype(np.float32))


def draw_clip(seed: int, index: int, frames: int, *, spoil: bool = False) -> Clip:
    """Clip number `index` of stream `seed`: the same numbers always give the same clip.

    Args:
        frames: T, of the form 4k+1.
        spoil: spoil each dimension in its share of clips (training data); otherwise the clip is clean.
    """
    rng = np.random.default_rng([seed, index])
    identity = draw_identity(rng)
    waveform, mouth = sentence(frames, rng)
    path, lid = head_path(frames, rng), blinks(frames, rng)
    flaws = tuple(d for d, share in SPOILED.items() if rng.random() < share and spoil)
    shown = sentence(frames, rng)[1] if "ls" in flaws else mouth
    path = spoil_motion(path, rng) if "mn" in flaws else path
    damage = rng if "vq" in flaws else None
    return Clip(identity, pose_of(path, shown, lid), torch.from_numpy(mouth), waveform, flaws, damage)


def portrait(seed: int, index: int = 0) -> Tensor:
    """A person of this world looking at the viewer, mouth closed -> [3, S, S] in 0..1."""
    identity = draw_identity(np.random.default_rng([seed, index]))
    return render(identity[None], torch.tensor([[[0.0, 0.0, 0.02, 0.48, 1.0]]]))[0, 0]


__all__ = ["FPS", "RATE", "TEST", "TRAIN", "VALIDATION", "Clip", "draw_clip", "draw_identity", "portrait"]
