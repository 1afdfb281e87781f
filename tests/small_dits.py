"""Small random WanDiTs and inputs that fit them."""

from __future__ import annotations

from dataclasses import replace

import torch

from fantasy_core.audio import AudioTokens
from fantasy_core.wan import PRESETS, WanConfig, WanDiT

TINY = PRESETS["tiny"]


def random_dit(config: WanConfig, seed: int = 0) -> WanDiT:
    """Every parameter random, at a scale that keeps activations near 1: zero-initialised parts would hide errors."""
    dit, generator = WanDiT(config), torch.Generator().manual_seed(seed)
    for name, parameter in dit.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.2 if parameter.ndim == 1 or "modulation" in name else parameter[0].numel() ** -0.5
        parameter.data = noise * scale + (".norm" in name and name.endswith("weight"))
    return dit.eval()


def inputs(config: WanConfig, batch: int = 2, size=(3, 4, 6), text: int = 4) -> dict:
    condition = torch.randn(batch, config.condition_dim, *size) if config.condition_dim else None
    return {
        "latents": torch.randn(batch, config.out_dim, *size),
        "timestep": torch.tensor([987.3, 12.5, 500.0])[:batch],
        "text": torch.randn(batch, text, config.text_dim),
        "condition": condition,
        "clip": torch.randn(batch, 257, config.clip_dim) if config.clip_dim else None,
    }


def audio_tokens(config: WanConfig, batch: int = 2, frames: int = 3, rows: int = 7) -> AudioTokens:
    """Random windows whose real rows come first, the rest zero, as audio.window makes them."""
    lengths = torch.tensor([[2, rows, 5], [rows, 1, 4]])[:batch, :frames]
    real = torch.arange(rows) < lengths[:, :, None]
    return AudioTokens(torch.randn(batch, frames, rows, config.audio_token_dim) * real[..., None], lengths)


def without_audio(config: WanConfig) -> WanConfig:
    return replace(config, audio_dim=0, audio_token_dim=0)


def meta_dit(config: WanConfig) -> WanDiT:
    with torch.device("meta"):
        return WanDiT(config)
