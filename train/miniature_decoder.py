"""Go on with the codec's decoder once there is a base model: what it will decode is what that model makes.

The base model animates training people at the default guidance, and the judge reads off each video which drawing it
means. The decoder learns to draw the model's latents, with all their errors, as that drawing, and a real clip's latents
as the clip; mouths and eyes count more. The encoder, and so the latents, stay as they are. What the base gets wrong in
time, sync and motion it leaves alone: the judge's reading is what the video shows, not what it should.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fantasy_core.miniature.codec import GROUP, Codec
from fantasy_core.miniature.components import load_components
from fantasy_core.miniature.judge import fit_in_pieces
from fantasy_core.miniature.render import SIZE, mouth_box, render
from fantasy_core.miniature.world import TRAIN, Clip, draw_clip
from train.miniature_codec import fit, jitter, save_codec
from train.miniature_evaluate import sample_latents, to_video
from train.miniature_pool import BASE_FRAMES, in_parallel

FRAMES, MADE, REAL = 29, 4, 2  # of a step: frames a clip, clips that the base made, real clips
FOCUS = 4.0  # weight of pixels where mouths and eyes can be
UNUSED = 10_000  # clips of the training seeds from this number on, which the base was not trained on
AT_ONCE = 4  # clips a worker samples together


def face_weight() -> Tensor:
    """Weights [S, S] of mean 1 that count pixels where mouths and eyes can be FOCUS times."""
    face = (mouth_box() + mouth_box().flip(0)).clamp(max=1)  # the mouths' box, and its mirror image over the eyes
    weight = 1 + (FOCUS - 1) * face
    return weight / weight.mean()


def draw_samples(indices: range, out: Path, folder: Path, settings: dict) -> None:
    """Fill rows `indices`: what the base in `out` makes of a training person, and the drawings it means
    (in a worker)."""
    torch.set_num_threads(1)
    components = load_components(folder=out)
    rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("latents", "meant")}
    for first in range(indices.start, indices.stop, AT_ONCE):
        chosen = range(first, min(first + AT_ONCE, indices.stop))
        clips = [draw_clip(TRAIN[i % len(TRAIN)], UNUSED + i // len(TRAIN), BASE_FRAMES) for i in chosen]
        latents = sample_latents(components, clips, **settings, seed=first)
        identity = torch.stack([clip.identity for clip in clips])
        pose, _ = fit_in_pieces(to_video(components.codec, latents), identity)
        meant = torch.stack([render(who[None], moves[None])[0] for who, moves in zip(identity, pose, strict=True)])
        meant[:, 0] = torch.stack([clip.video()[0] for clip in clips])
        rows["latents"][chosen] = latents.half().numpy()
        rows["meant"][chosen] = (meant * 255).round().byte().numpy()


def sample_pool(out: Path, count: int, settings: dict) -> dict[str, np.ndarray]:
    """`count` clips as the base makes them: latents [N, 16, F, h, w] fp16 and the drawings meant [N, T, 3, S, S] uint8,
    sampled once by all cores."""
    folder = out / f"samples_{count}"
    if not folder.exists():
        beside = folder.with_suffix(".part")
        beside.mkdir(exist_ok=True)
        groups, size = (BASE_FRAMES - 1) // GROUP, SIZE // 8
        np.lib.format.open_memmap(beside / "latents.npy", "w+", np.float16, (count, 16, 1 + groups, size, size))
        np.lib.format.open_memmap(beside / "meant.npy", "w+", np.uint8, (count, BASE_FRAMES, 3, SIZE, SIZE))
        in_parallel(draw_samples, count, out, beside, settings, chunk=AT_ONCE, task="sampling clips")
        os.replace(beside, folder)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "meant")}


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


def made_batch(pool: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Frame 0 and some of the groups of random samples -> latents [B, 16, F, h, w], meant video [B, 3, T, S, S]."""
    latents, videos = [], []
    groups = np.arange(1, pool["latents"].shape[2])
    for row in rng.integers(len(pool["latents"]), size=MADE):
        chosen = np.sort(rng.choice(groups, (FRAMES - 1) // GROUP, replace=False))
        frames = [0, *(GROUP * (group - 1) + 1 + i for group in chosen for i in range(GROUP))]
        latents.append(torch.from_numpy(pool["latents"][row][:, [0, *chosen]]).float())
        videos.append(torch.from_numpy(pool["meant"][row][frames]).movedim(1, 0).float() / 127.5 - 1)
    return torch.stack(latents), torch.stack(videos)


def real_batch(codec: Codec, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Real clips and their latents, a little noisy -> latents [B, 16, F, h, w], video [B, 3, T, S, S]."""
    clips: list[Clip] = [draw_clip(int(rng.choice(TRAIN)), int(rng.integers(UNUSED)), FRAMES) for _ in range(REAL)]
    video = torch.stack([clip.video() for clip in clips]).movedim(2, 1) * 2 - 1
    with torch.no_grad():
        return jitter(codec.encode(video)), video


def train_decoder(out: Path, *, minutes: float, seed: int, clips: int, settings: dict) -> None:
    """Train the decoder in `out` for `minutes` on `clips` samples of the base model there."""
    pool = sample_pool(out, clips, settings)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    codec, weight = load_components(folder=out).codec, face_weight()
    codec.decoder.requires_grad_(True)

    def step() -> tuple[float, float]:
        (made, meant), (coded, shown) = made_batch(pool, rng), real_batch(codec, rng)
        video = torch.cat([meant, shown])
        with torch.autocast("cpu", torch.bfloat16):
            drawn = draw(codec, torch.cat([made, coded]))
        error = (drawn.float() - video).square() * weight
        (error[:, :, 0].mean() + error[:, :, 1:].mean()).backward()
        plain = (drawn.detach().float() - video).square()
        return plain[:, :, 0].mean().item(), plain[:, :, 1:].mean().item()

    trained = fit(codec, codec.decoder.parameters(), step, "decoder", minutes)
    save_codec(out, trained)
