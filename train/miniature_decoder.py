"""Go on with the codec's decoder once there is a base model: what it will decode is what that model makes.

The encoder, and so the latents, stay as they are. Half of the clips in a step are coded exactly, up to some noise; the
other half are what the base model makes of their noisy latents in one step, with the errors a model makes. The decoder
learns to draw both as the clean clip, with more weight on mouths and eyes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fantasy_core.audio import AudioProjection, window, window_ranges
from fantasy_core.flow import timestep, x0_from_velocity, x_sigma
from fantasy_core.miniature.codec import Codec
from fantasy_core.miniature.components import load_components
from fantasy_core.miniature.render import mouth_box
from fantasy_core.miniature.world import FPS, TRAIN, Clip, draw_clip
from fantasy_core.wan import WanDiT
from fantasy_core.weights import load_projection
from train.miniature_base import condition_of
from train.miniature_codec import fit, jitter, save_codec

FRAMES, CLIPS = 29, 6  # of a step; half of the clips go through the base model
FOCUS = 4.0  # weight of pixels where mouths and eyes can be


def face_weight() -> Tensor:
    """Weights [S, S] of mean 1 that count pixels where mouths and eyes can be FOCUS times."""
    face = (mouth_box() + mouth_box().flip(0)).clamp(max=1)  # the mouths' box, and its mirror image over the eyes
    weight = 1 + (FOCUS - 1) * face
    return weight / weight.mean()


@torch.no_grad()
def remade(dit: WanDiT, projection: AudioProjection, codec: Codec, x0: Tensor, clips: list[Clip]) -> Tensor:
    """What the model makes of x0 [B, 16, F, h, w] from a random noise level in one step, like x0."""
    sigma = 0.1 + 0.6 * torch.rand(len(x0))
    noisy = x_sigma(x0, torch.randn_like(x0), sigma)
    tokens = projection(torch.cat([clip.features() for clip in clips]))
    audio = window(tokens, window_ranges(tokens.shape[1], FRAMES, fps=FPS))
    text = x0.new_zeros(len(x0), 1, dit.config.text_dim)
    velocity = dit(noisy, timestep(sigma), text, condition=condition_of(codec, x0), audio=audio)
    return x0_from_velocity(noisy, velocity, sigma)


def draw(codec: Codec, latents: Tensor) -> Tensor:
    """Decode latents [B, 16, F, h, w] with gradients -> video [B, 3, T, S, S], not clamped."""
    (mean0, std0), (mean, std) = codec.scale(0), codec.scale(1)
    groups = latents.shape[2] - 1
    first_latent = latents[:, :, 0] * std0 + mean0
    first = codec.decoder.first(first_latent)
    group = latents[:, :, 1:].movedim(2, 1).flatten(0, 1) * std + mean
    seen = (x.repeat_interleave(groups, 0) for x in (first_latent, first))
    drawn = codec.decoder.group(group, *seen).unflatten(0, (-1, groups)).unflatten(2, (3, -1))  # [B, k, 3, 4, S, S]
    return torch.cat([first.unsqueeze(2), drawn.movedim(1, 2).flatten(2, 3)], 2)


def train_decoder(out: Path, *, minutes: float, seed: int) -> None:
    """Train the decoder in `out` for `minutes`, beside the base model there."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    components = load_components(folder=out)
    codec, weight = components.codec, face_weight()
    codec.decoder.requires_grad_(True)
    projection = load_projection(out / "fantasytalking.safetensors")
    with components.dit() as dit:

        def step() -> tuple[float, float]:
            clips = [draw_clip(int(rng.choice(TRAIN)), int(rng.integers(10_000)), FRAMES) for _ in range(CLIPS)]
            video = torch.stack([clip.video() for clip in clips]).movedim(2, 1) * 2 - 1
            with torch.no_grad():
                x0 = codec.encode(video)
            half = CLIPS // 2
            made = remade(dit, projection, codec, x0[:half], clips[:half])
            with torch.autocast("cpu", torch.bfloat16):
                drawn = draw(codec, torch.cat([made, jitter(x0[half:])]))
            error = (drawn.float() - video).square() * weight
            (error[:, :, 0].mean() + error[:, :, 1:].mean()).backward()
            plain = (drawn.detach().float() - video).square()
            return plain[:, :, 0].mean().item(), plain[:, :, 1:].mean().item()

        trained = fit(codec, codec.decoder.parameters(), step, "decoder", minutes)
    save_codec(out, trained)
