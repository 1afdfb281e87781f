"""The errors of videos under a model: which noise they meet, and one pass for one video or for many.

A draw is the noise level and the noise that a unit's videos share, policy and reference alike. Every draw comes from a
generator of its own, keyed by what it is for (`flow.draw_noise`): nothing depends on what was drawn before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasy_core.audio import AudioTokens
from fantasy_core.flow import draw_noise, shift_sigma, timestep, velocity_target, x_sigma
from fantasy_core.preference import error_map, masked_mean
from train.shards import Encoded, condition_of

SIGMA, NOISE, CHOICE = 2, 3, 5  # what a draw is for


@dataclass(frozen=True)
class Draw:
    """A noise level, and the keys of the noise."""

    sigma: float
    keys: tuple[int, ...]

    def noise(self, shape: Sequence[int]) -> Tensor:
        return draw_noise(shape, *self.keys)


@dataclass(frozen=True)
class Draws:
    """Where draws come from: fresh ones for every unit of the endless stream or, with `fixed` of them, a few for each
    input that return, whatever the run's seed, so that runs can share what the reference makes of them."""

    seed: int
    distribution: str
    shift: float
    fixed: int = 0

    def __call__(self, index: int, name: str) -> Draw:
        """The draw of unit `index`, whose videos are of the input `name`."""
        if not self.fixed:
            keys = (self.seed, NOISE, index)
            return Draw(draw_sigma(self.seed, index, self.distribution, self.shift), keys)
        uniform = torch.special.ndtr(draw_noise((1,), self.seed, CHOICE, index, dtype=torch.float64))
        return self.of_input(name, min(int(uniform * self.fixed), self.fixed - 1))

    def of_input(self, name: str, number: int) -> Draw:
        """Draw `number` of those that are kept for an input."""
        key = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
        normal = draw_noise((1,), 0, SIGMA, key, number, dtype=torch.float64)
        return Draw(sigma_of(normal, self.distribution, self.shift), (0, NOISE, key, number))


def draw_sigma(seed: int, index: int, distribution: str, shift: float) -> float:
    """One noise level: logit-normal or uniform, then shifted."""
    return sigma_of(draw_noise((1,), seed, SIGMA, index, dtype=torch.float64), distribution, shift)


def sigma_of(normal: Tensor, distribution: str, shift: float) -> float:
    """The noise level that stands where `normal` stands among normal numbers."""
    sigma = normal.sigmoid() if distribution == "logit-normal" else torch.special.ndtr(normal)
    return float(shift_sigma(sigma, shift))


@dataclass(frozen=True)
class Row:
    """A video under a draw."""

    name: str
    encoded: Encoded
    draw: Draw


def error_maps(dit, rows: Sequence[Row]) -> Tensor:
    """(v - v*)^2 [R, F, h, w] of videos of one size under the model as it is, in one pass, each at its own sigma."""
    parameter = next(dit.parameters())
    device = parameter.device
    videos = [row.encoded for row in rows]
    latents = _stacked([video["latents"] for video in videos]).float().to(device)  # [R, C, F, h, w]
    noise = _stacked([row.draw.noise(latents.shape[1:]) for row in rows]).to(device)
    sigma = torch.tensor([row.draw.sigma for row in rows], dtype=torch.float64, device=device)
    conditions = [condition_of(video) for video in videos]
    clip = _stacked([video["clip"] for video in videos]).to(device) if "clip" in videos[0] else None
    velocity = dit(
        x_sigma(latents, noise, sigma.float()),
        timestep(sigma).float(),
        _padded([video["text"] for video in videos]).to(device),
        condition=None if conditions[0] is None else _stacked(conditions).to(device),
        clip=clip,
        audio=_heard(videos, device) if "audio" in videos[0] else None,
    )
    return error_map(velocity, velocity_target(latents, noise))


def _heard(videos: Sequence[Encoded], device) -> AudioTokens:
    lengths = _stacked([v["lengths"] for v in videos]).to(device) if "lengths" in videos[0] else None
    tokens = [video["audio"] for video in videos]
    most = max(one.shape[1] for one in tokens)
    return AudioTokens(_stacked([F.pad(t, (0, 0, 0, most - t.shape[1])) for t in tokens]).to(device), lengths)


def _padded(texts: Sequence[Tensor]) -> Tensor:
    """Texts [L_i, d] -> [R, L, d], with the zeros that the model pads them with anyway."""
    most = max(len(text) for text in texts)
    return _stacked([F.pad(text, (0, 0, 0, most - len(text))) for text in texts])


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """A batch of tensors; of a single one without a copy."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


class Errors:
    """The errors of a unit's videos under its draw, over their lips if `masked`; `pairs` index into `rows`."""

    def __init__(self, dit, rows: Sequence[Row], pairs: Sequence[tuple[int, int]], masked: bool):
        self.dit, self.rows, self.pairs, self.masked = dit, rows, pairs, masked

    @property
    def sigma(self) -> float:
        return self.rows[0].draw.sigma

    def __call__(self, video: int) -> Tensor:
        """The error of one video under the model as it is, a scalar with its graph."""
        return self.of([video], error_maps(self.dit, [self.rows[video]]))[0]

    def of(self, videos: Sequence[int], maps: Tensor) -> Tensor:
        """Errors [V] of some videos, from their maps [V, F, h, w]."""
        if not self.masked:
            return masked_mean(maps)
        masks = torch.stack([self.rows[video].encoded["lips"] for video in videos])
        return masked_mean(maps, masks.float().to(maps.device))


def all_errors(units: Sequence[Errors], *, together: bool) -> list[Tensor]:
    """Errors [V] of every unit's videos under the model as it is: in one pass (`together`), or one at a time."""
    if not together:
        return [torch.stack([unit(video) for video in range(len(unit.rows))]) for unit in units]
    sizes = [len(unit.rows) for unit in units]
    maps = error_maps(units[0].dit, [row for unit in units for row in unit.rows]).split(sizes)
    return [unit.of(range(size), own) for unit, size, own in zip(units, sizes, maps, strict=True)]
