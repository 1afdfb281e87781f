"""Train the miniature's WanDiT by flow matching on half-spoiled clips.

Left out, against FantasyTalking's training: its two stages (clip level, then lips), the face masks, identity and motion
networks. Kept: a base that draws and listens through one audio window per latent frame, audio dropout for guidance,
more weight on the mouth.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fantasy_core.audio import AudioProjection, window, window_ranges
from fantasy_core.flow import sample_sigma, timestep, velocity_target, x_sigma
from fantasy_core.miniature.codec import GROUP, Codec
from fantasy_core.miniature.components import save_miniature
from fantasy_core.miniature.render import mouth_box
from fantasy_core.miniature.world import FPS
from fantasy_core.wan import PRESETS, WanDiT
from fantasy_core.weights import open_tensors
from train.miniature_pool import latent_pool, load_codec

WHOLE, LATER = 6, 11  # clips in a batch of whole clips (21 latent frames) or of second halves (11)
MOUTH_WEIGHT = 4.0  # of the squared error where mouths are, before the weights are normalised
EVEN = 0.3  # share of a latent channel's weight that does not go by what the channel does to the picture
AUDIO_DROPOUT = 0.12
SIGMA_SHIFT = 2.0
CHECKPOINT_SECONDS = 240
COMPILED_FROM = 5.0  # minutes of training


class Speaker(nn.Module):
    """The DiT and its audio projection, trained together."""

    def __init__(self):
        super().__init__()
        config = PRESETS["miniature"]
        self.dit = WanDiT(config)
        self.proj_model = AudioProjection(config.audio_dim, config.audio_token_dim)
        for name, parameter in self.dit.named_parameters():
            if ".processor." in name:  # not FantasyTalking's zeros: those are for a base that already draws
                nn.init.xavier_uniform_(parameter, gain=1.0 if "k_proj" in name else 0.3)

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Tensor, features: Tensor, first_frame: int) -> Tensor:
        """noisy [B, 16, F, h, w], sigma [B], condition [B, 20, F, h, w], features [B, L, C] -> velocity like noisy.

        In training a share of the clips does not hear its voice, for guidance.
        """
        frames = 1 + GROUP * (noisy.shape[2] - 1)
        ranges = window_ranges(features.shape[1], frames, fps=FPS, first_frame=first_frame)
        heard = (torch.rand(len(noisy)) > AUDIO_DROPOUT).float()
        text = noisy.new_zeros(len(noisy), 1, self.dit.config.text_dim)
        audio = window(self.proj_model(features), ranges)
        return self.dit(noisy, timestep(sigma), text, condition=condition, audio=audio, audio_scale=heard)


def draw_batch(pool: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor, int]:
    """Random windows, whole clips or second halves -> x0 [B, 16, F, h, w], features [B, L, C], the first frame."""
    later = rng.random() < 0.4
    rows = rng.integers(len(pool["latents"]), size=LATER if later else WHOLE)
    x0 = torch.from_numpy(pool["later" if later else "latents"][rows]).float()
    first_frame = GROUP * (pool["later"].shape[2] - 1) if later else 0
    return x0, torch.from_numpy(pool["features"][rows]).float(), first_frame


@torch.no_grad()
def condition_of(codec: Codec, x0: Tensor) -> Tensor:
    """Wan's image condition [B, 20, F, h, w] of clips x0: the mask, then frame 0's latents followed by grey's.

    Grey is coded beside frame 0 as decoded from x0, as `animate` does with a portrait.
    """
    video = torch.zeros(len(x0), 3, 1 + GROUP, 8 * x0.shape[3], 8 * x0.shape[4])
    video[:, :, :1] = next(codec.stream(x0[:, :, :1]))
    grey = codec.encode(video)[:, :, 1:].expand(-1, -1, x0.shape[2] - 1, -1, -1)
    image = torch.cat([x0[:, :, :1], grey], 2)
    mask = torch.zeros_like(image[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([mask, image], 1)


@cache
def mouth_weight() -> Tensor:
    """Weights [1, 1, 1, 8, 8] of mean 1 that count latents where mouths can be more."""
    weight = 1 + (MOUTH_WEIGHT - 1) * F.interpolate(mouth_box()[None, None], (8, 8), mode="area").unsqueeze(2)
    return weight / weight.mean()


@torch.no_grad()
def channel_weight(codec: Codec, latents: Tensor, nudge: float = 0.3) -> Tensor:
    """Weights [1, 16, 1, 1, 1] of mean 1: how much a change of each channel of latents [B, 16, F, h, w] alters the
    picture. All channels have unit variance, but the first alters thirteen times as much as the last."""
    decoded, altered = codec.decode(latents), []
    for channel in range(latents.shape[1]):
        nudged = latents.clone()
        nudged[:, channel, 1:] += nudge * torch.randn_like(nudged[:, channel, 1:])
        altered.append((codec.decode(nudged) - decoded).square().mean())
    weight = torch.stack(altered)
    return (EVEN + (1 - EVEN) * weight / weight.mean()).view(1, -1, 1, 1, 1)


def optimisers(speaker: Speaker) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for n, p in speaker.named_parameters() if ".blocks." in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in speaker.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=4),
        torch.optim.AdamW(rest, lr=0, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], peak: float, step: int, progress: float) -> None:
    """Warm up over 200 steps, hold, fall linearly to zero from 3/8 of the time on."""
    rate = peak * min(1, (step + 1) / 200) * min(1.0, 1.6 * (1 - progress)) + 1e-6
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def train_step(
    speaker: Speaker, codec: Codec, weight: Tensor, pool: dict[str, np.ndarray], rng: np.random.Generator
) -> float:
    """Gradients of one batch's squared error of the velocity under `weight`; returns the loss."""
    x0, features, first_frame = draw_batch(pool, rng)
    noise, sigma = torch.randn_like(x0), sample_sigma(len(x0), shift=SIGMA_SHIFT)
    # attention in single steps, for the compiler: the CPU's fused backward takes twice the time at this size
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        predicted = speaker(x_sigma(x0, noise, sigma), sigma, condition_of(codec, x0), features, first_frame)
    loss = ((predicted.float() - velocity_target(x0, noise)).square() * weight).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(speaker.parameters(), 1.0)
    return loss.item()


def save_checkpoint(out: Path, state: dict, average: AveragedModel) -> None:
    """What to go on from, and the averaged weights as a model file; each written beside and renamed."""
    torch.save(state, out / "base_state.part")
    os.replace(out / "base_state.part", out / "base_state.pt")
    save_miniature(out, {name.removeprefix("dit."): t for name, t in average.module.state_dict().items()})


def start_from(speaker: Speaker, folder: Path) -> None:
    """Begin with the weights of a trained miniature in `folder`."""
    entries = {**open_tensors(folder / "base.safetensors").entries,
               **open_tensors(folder / "fantasytalking.safetensors").entries}  # fmt: skip
    own = {name.removeprefix("dit."): tensor for name, tensor in speaker.state_dict().items()}
    for name, tensor in own.items():
        tensor.copy_(entries[name].read())


def train_base(out: Path, *, minutes: float, clips: int, seed: int, rate: float, start: Path | None = None) -> None:
    """Train for `minutes` in all, going on from a checkpoint in `out` if there is one; log.jsonl has the losses.

    A new run begins with the weights in the folder `start`, or at random. Longer runs compile the blocks, where there
    is a C++ compiler: it takes a minute and halves the time of a step.
    """
    pool, codec = latent_pool(out, clips), load_codec(out / "codec.safetensors")
    torch.manual_seed(seed)
    speaker = Speaker()
    if start is not None:
        start_from(speaker, start)
    weight = mouth_weight() * channel_weight(codec, torch.from_numpy(pool["latents"][:16]).float())
    average = AveragedModel(speaker, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    if minutes >= COMPILED_FROM and shutil.which("g++"):
        for block in speaker.dit.blocks:
            block.compile(dynamic=False)
    optimizers = optimisers(speaker)
    parts = {"speaker": speaker, "average": average, **{f"optimizer{i}": o for i, o in enumerate(optimizers)}}
    step, spent = 0, 0.0
    if (out / "base_state.pt").exists():
        saved = torch.load(out / "base_state.pt", weights_only=True)
        step, spent = saved["step"], saved["seconds"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    def state() -> dict:
        return {"step": step, "seconds": time.monotonic() - started, **{n: p.state_dict() for n, p in parts.items()}}

    torch.manual_seed(seed + step)
    rng, losses = np.random.default_rng([seed, step]), []
    started = saved_at = time.monotonic() - spent
    with open(out / "log.jsonl", "a") as log:
        while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
            set_rate(optimizers, rate, step, progress)
            losses.append(train_step(speaker, codec, weight, pool, rng))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update_parameters(speaker)
            step += 1
            if step % 50 == 0:
                line = {"step": step, "loss": round(float(np.mean(losses[-50:])), 4), "progress": round(progress, 4)}
                print(json.dumps(line), file=log, flush=True)
                print(f"base: step {step}, loss {line['loss']}, {minutes * (1 - progress):.0f} min left", flush=True)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save_checkpoint(out, state(), average)
                saved_at = time.monotonic()
    save_checkpoint(out, state(), average)
