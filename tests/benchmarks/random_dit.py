"""DiTs of any preset with random weights, and inputs for them, for the benchmarks."""

from __future__ import annotations

import torch

from fantasy_core.audio import AudioTokens
from fantasy_core.estimate import AUDIO_ROWS, CLIP_TOKENS, token_grid
from fantasy_core.wan import PRESETS, WanConfig, WanDiT

__all__ = ["AUDIO_ROWS", "random_dit", "random_inputs"]


def random_dit(preset: str | WanConfig, dtype: torch.dtype) -> WanDiT:
    """On the CPU. All blocks have equal values: drawing 17 billion numbers takes minutes, copying takes seconds."""
    with torch.device("meta"):
        dit = WanDiT(PRESETS[preset] if isinstance(preset, str) else preset)
    dit = dit.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    for name, parameter in dit.named_parameters():
        if name.startswith("blocks.") and not name.startswith("blocks.0."):
            continue
        scale = 0.2 if parameter.ndim == 1 or "modulation" in name else parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape) * scale + (".norm" in name and name.endswith("weight")))
    for block in dit.blocks[1:]:
        block.load_state_dict(dit.blocks[0].state_dict())
    return dit


def random_inputs(config: WanConfig, frames: int, height: int, width: int, audio_rows: int, device: str) -> dict:
    """Keyword arguments of a forward pass of batch 1, in fp32."""
    latent_frames, *_ = token_grid(config, frames, height, width)
    size = (latent_frames, height // 8, width // 8)
    given = {
        "latents": torch.randn(1, config.out_dim, *size, device=device),
        "timestep": torch.full((1,), 700.0, device=device),
        "text": torch.randn(1, config.text_len, config.text_dim, device=device),
    }
    if config.condition_dim:
        given["condition"] = torch.randn(1, config.condition_dim, *size, device=device)
    if config.clip_dim:
        given["clip"] = torch.randn(1, CLIP_TOKENS, config.clip_dim, device=device)
    if config.audio_token_dim:
        tokens = torch.randn(1, latent_frames, audio_rows, config.audio_token_dim, device=device)
        given["audio"] = AudioTokens(tokens, torch.full((1, latent_frames), audio_rows, device=device))
    return given
