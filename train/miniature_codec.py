"""Fit the miniature's codec to rendered clips: squared error, robust to a model's small errors in the latents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fantasy_core.miniature.codec import Codec, change, principal_start
from fantasy_core.weights import save_tensors
from train.miniature_pool import video_pool


def codec_batch(videos: np.ndarray, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A frame and four frames of the same clips, [size, 3, S, S] and [size, 12, S, S] in -1..1, mirrored at random."""
    rows, at = rng.integers(len(videos), size=size), rng.integers(videos.shape[1], size=size)
    group_at = rng.integers(videos.shape[1] - 3, size=size)
    first = np.stack([videos[r, a] for r, a in zip(rows, at, strict=True)])
    group = np.stack([videos[r, a : a + 4] for r, a in zip(rows, group_at, strict=True)])
    first = torch.from_numpy(first).float() / 127.5 - 1
    group = torch.from_numpy(group).movedim(2, 1).flatten(1, 2).float() / 127.5 - 1  # channels, then frames
    group[: size // 24] = 0  # what an image condition shows after its picture
    return (first.flip(-1), group.flip(-1)) if rng.random() < 0.5 else (first, group)


def jitter(latent: Tensor, most: float = 0.25) -> Tensor:
    """Noise of a random strength a sample: a model's small errors should decode cleanly."""
    return latent + torch.randn_like(latent) * torch.rand(len(latent), *[1] * (latent.ndim - 1)) * most


def decibels(errors: list[tuple[float, float]]) -> list[float]:
    """PSNR in dB of squared errors of pixels in -1..1, averaged over the list: of frame 0, and of groups."""
    return [10 * math.log10(4 / float(np.mean(error))) for error in zip(*errors, strict=True)]


def train_step(codec: Codec, first: Tensor, group: Tensor) -> tuple[float, float]:
    """Gradients of one batch; returns the squared errors of frame 0 and of the groups decoded beside it."""
    with torch.autocast("cpu", torch.bfloat16):
        first_latent, latent = codec.encoder(first).float(), codec.encoder(first, group).float()
        noisy = jitter(first_latent)
        drawn_first = codec.decoder.first(noisy).float()
        drawn_group = codec.decoder.group(jitter(latent), noisy, drawn_first).float()
    errors = F.mse_loss(drawn_first, first), F.mse_loss(drawn_group, group)
    (errors[0] + errors[1] + 1e-5 * (latent.square().mean() + first_latent.square().mean())).backward()
    return errors[0].item(), errors[1].item()


@torch.no_grad()
def standardise(codec: Codec, videos: np.ndarray, rng: np.random.Generator) -> None:
    """Give latents zero mean and unit variance per channel over training clips (without the grey groups)."""
    batches = [codec_batch(videos, 240, rng) for _ in range(2)]
    firsts = torch.cat([codec.encoder(first) for first, _ in batches])
    groups = torch.cat([codec.encoder(first, group)[10:] for first, group in batches])
    for index, latents in enumerate((firsts, groups)):
        codec.mean[index], codec.std[index] = latents.mean((0, 2, 3)), latents.std((0, 2, 3))


def save_codec(out: Path, codec: Codec) -> None:
    save_tensors(out / "codec.safetensors", {name: tensor.half() for name, tensor in codec.state_dict().items()})


def train_codec(out: Path, *, minutes: float, clips: int, seed: int) -> None:
    """Fit the codec for `minutes` and write `codec.safetensors` in `out`."""
    videos = video_pool(out, clips)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    codec = Codec()
    first, group = codec_batch(videos, 480, rng)
    principal_start(codec.encoder.linear[0], codec.decoder.linear[0], first)
    principal_start(codec.encoder.linear[1], codec.decoder.linear[1], change(group, first)[20:])
    codec.to(memory_format=torch.channels_last)
    codec = fit(codec, codec.parameters(), lambda: train_step(codec, *codec_batch(videos, 48, rng)), "codec", minutes)
    standardise(codec, videos, rng)
    save_codec(out, codec)


def fit(codec: Codec, parameters, step_fn: Callable[[], tuple[float, float]], name: str, minutes: float) -> Codec:
    """Fit `parameters` of `codec` for `minutes`; returns the codec with averaged weights.

    `step_fn` leaves gradients and returns the squared errors of frame 0 and of the groups.
    """
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.98), weight_decay=1e-4)
    started, errors = time.monotonic(), []
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        for settings in optimiser.param_groups:
            settings["lr"] = 2e-3 * min(1, (len(errors) + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-5
        errors.append(step_fn())
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(codec)
        if len(errors) % 25 == 0:
            alone, grouped = decibels(errors[-25:])
            told = f"step {len(errors)}, frame 0 {alone:.1f} dB, groups {grouped:.1f} dB"
            print(f"{name}: {told}, {minutes * (1 - progress):.1f} min left", flush=True)
    return average.module
