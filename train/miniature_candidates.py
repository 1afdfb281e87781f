"""Candidates of the miniature for preference training: sampled, scored by the exact judge, and cached, in one go.

For every input (a person and a sentence of the training seeds) the real clip and several generated ones, made with
different noise and guidance; or, on-policy, by the base with its experts, with different noise. Their latents go into
the cache as they are sampled: an mp4 of 64 x 64 pixels would lose more than the differences that are to be learnt. The
critic is the judge; z is its score, less the median of the generated videos and over their standard deviation. Lip
masks are where the renderer moves the mouth.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fantasy_core.audio import window_at
from fantasy_core.encoders import image_condition
from fantasy_core.lips import project
from fantasy_core.miniature.components import MiniatureComponents, load_components
from fantasy_core.miniature.judge import judge
from fantasy_core.miniature.render import render
from fantasy_core.miniature.world import FPS, TRAIN, Clip, draw_clip
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_evaluate import Experts, sample_latents, to_video
from train.pairs import Score
from train.run import write_rows
from train.shards import Encoded, ShardWriter

FIRST = 100_000  # clips of a seed from here on: the base has not been trained on them
STEPS = 12
GUIDANCE = (1.0, 1.0, 1.0, 1.0, 3.0, 3.0)  # of the candidates of an input, each with noise of its own
SHIFT = 12.0
MOUTH = 0.02  # a pixel belongs to the mouth where opening it changes the picture by more


@dataclass(frozen=True)
class Row:
    """A line of videos.jsonl."""

    video: str
    input: str
    source: str
    variant: int
    frames: int
    split: str = "train"


def draw_inputs(count: int, frames: int, skip: int = 0) -> list[Clip]:
    """`count` clean clips of the training seeds, after the first `skip`."""
    return [draw_clip(TRAIN[i % len(TRAIN)], FIRST + i // len(TRAIN), frames) for i in range(skip, skip + count)]


def mouth_mask(identity: Tensor, pose: Tensor) -> Tensor:
    """Where the mouth is in frames of these poses [T, 5] -> [T, S, S] in 0..1, grown by a pixel."""
    opened, shut = pose.clone(), pose.clone()
    opened[:, 2], shut[:, 2] = 1.0, 0.0
    drawn = render(identity.expand(2, -1), torch.stack([opened, shut]))  # [2, T, 3, S, S]
    moved = (drawn[0] - drawn[1]).abs().mean(1, keepdim=True) > MOUTH
    return F.max_pool2d(moved.float(), 3, 1, 1)[:, 0]


def encoded(components: MiniatureComponents, clip: Clip, latents: Tensor, pose: Tensor) -> Encoded:
    """What the cache holds of a video with these latents [16, F, h, w]."""
    frames = len(clip.pose)
    heard = window_at(components.voice(torch.from_numpy(clip.waveform)), frames, fps=FPS)
    portrait = clip.video()[:1] * 2 - 1
    return {
        "latents": latents.contiguous(),
        "image": image_condition(components.encode, portrait, frames)[0, 4:].contiguous(),
        "audio": heard.tokens[0],
        "lengths": heard.lengths[0],
        "text": components.text([""])[0],
        "lips": project(mouth_mask(clip.identity[None], pose)),
    }


@torch.inference_mode()
def piece(
    folder: Path, clips: list[Clip], first: int, seed: int, experts: Experts | None
) -> list[tuple[int, int, dict[str, float], Encoded]]:
    """(input, variant or -1 for the real clip, scores, tensors) of a few inputs, in a process of its own."""
    torch.set_num_threads(1)
    components, found = load_components(folder=folder), []
    real = torch.stack([clip.video() for clip in clips]).movedim(2, 1) * 2 - 1
    sets = {-1: components.encode(real)}
    for variant, scale in enumerate(GUIDANCE if experts is None else [1.0] * len(GUIDANCE)):
        told = {"steps": STEPS, "shift": SHIFT, "scale": scale, "experts": experts}
        sets[variant] = sample_latents(components, clips, seed=seed * 10**6 + first * len(GUIDANCE) + variant, **told)
    for variant, latents in sets.items():
        video = to_video(components.codec, latents)
        told = judge(video, torch.stack([c.identity for c in clips]), torch.stack([c.mouth for c in clips]))
        for i, clip in enumerate(clips):
            scores = {dimension: float(told[dimension][i]) for dimension in DIMENSIONS}
            found.append((first + i, variant, scores, encoded(components, clip, latents[i], told["pose"][i])))
    # clones, for a view would take the whole batch along to the other process
    return [(i, v, s, {name: tensor.clone() for name, tensor in held.items()}) for i, v, s, held in found]


def make_candidates(
    folder: Path,
    out: Path,
    *,
    count: int,
    frames: int,
    seed: int = 0,
    skip: int = 0,
    experts: Experts | None = None,
) -> None:
    """videos.jsonl, scores.jsonl and cache/ in `out`, for `count` inputs of the miniature in `folder`."""
    clips, components = draw_inputs(count, frames, skip), load_components(folder=folder)
    facts = {"model": components.name, "weights": components.fingerprint, "fps": FPS, "lips": "rendered"}
    facts |= {"frames": frames, "seed": seed, "experts": "none" if experts is None else experts.identity}
    writer, rows, scores = ShardWriter(out / "cache", facts), [], {}
    jobs = [(clips[i : i + 4], skip + i) for i in range(0, count, 4)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        running = [workers.submit(piece, folder, part, first, seed, experts) for part, first in jobs]
        for job in tqdm(running, desc="candidates", unit="x4"):
            for number, variant, told, tensors in job.result():
                source = "real" if variant < 0 else "miniature"
                name = f"{number:05d}_{'real' if variant < 0 else variant}"
                rows.append(Row(name, f"{number:05d}", source, variant, frames))
                scores[name] = told
                digest = hashlib.sha256(tensors["latents"].numpy().tobytes()).hexdigest()
                entry = {"sha256": digest, "input": rows[-1].input, "frames": frames}
                writer.add(name, tensors, entry)
    writer.finish()
    writer.add_empty_prompt(components.text([""])[0])
    write_rows(out / "videos.jsonl", rows)
    write_rows(out / "scores.jsonl", standardised(rows, scores))


def standardised(rows: list[Row], scores: dict[str, dict[str, float]]) -> list[Score]:
    """z of every score: less the median of the generated videos, over their standard deviation."""
    made = [row.video for row in rows if row.source != "real"]
    z: dict[str, dict[str, float]] = {row.video: {} for row in rows}
    for dimension in DIMENSIONS:
        values = torch.tensor([scores[name][dimension] for name in made], dtype=torch.float64)
        centre, spread = float(values.median()), float(values.std().clamp_min(1e-9))
        for name in z:
            z[name][f"z_{dimension}"] = (scores[name][dimension] - centre) / spread
    return [Score(name, **told) for name, told in z.items()]
