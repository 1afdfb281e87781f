"""Training clips of the miniature's world, rendered once by all cores: videos for the codec,
latents for the base model."""

from __future__ import annotations

import math
import os
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from fantasy_core.audio import token_count
from fantasy_core.miniature.codec import CHANNELS, Codec
from fantasy_core.miniature.render import SIZE
from fantasy_core.miniature.speech import FEATURES, RATE
from fantasy_core.miniature.world import FPS, TRAIN, Clip, draw_clip

CODEC_FRAMES, BASE_FRAMES = 41, 81  # frames of a clip in each pool
CHUNK = 20  # clips a worker draws at a time


def training_clip(index: int, frames: int) -> Clip:
    """Half-spoiled clip number `index` of the training seeds, taken in turn."""
    return draw_clip(TRAIN[index % len(TRAIN)], index // len(TRAIN), frames, spoil=True)


def load_codec(path: Path) -> Codec:
    """A trained codec, frozen."""
    codec = Codec()
    codec.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return codec.eval().requires_grad_(False)


def in_parallel(draw, count: int, *rest, chunk: int = CHUNK, task: str = "drawing clips") -> None:
    """Run draw(indices, *rest) for all of range(count) in worker processes, with a progress bar."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        jobs: list[Future] = [
            workers.submit(draw, range(i, min(i + chunk, count)), *rest) for i in range(0, count, chunk)
        ]
        for job in tqdm(jobs, desc=task, unit=f"x{chunk}"):
            job.result()


def draw_videos(indices: range, path: Path) -> None:
    """Fill rows `indices` of the uint8 videos at `path` (in a worker process)."""
    torch.set_num_threads(1)
    videos = np.load(path, mmap_mode="r+")
    for index in indices:
        videos[index] = (training_clip(index, CODEC_FRAMES).video() * 255).round().byte().numpy()


def video_pool(out: Path, count: int) -> np.ndarray:
    """uint8 videos [count, T, 3, S, S] of training clips, kept under `out`."""
    path = out / f"videos_{count}.npy"
    if not path.exists():
        beside = path.with_suffix(".part.npy")
        np.lib.format.open_memmap(beside, "w+", np.uint8, (count, CODEC_FRAMES, 3, SIZE, SIZE))
        in_parallel(draw_videos, count, beside)
        os.replace(beside, path)
    return np.load(path)


def draw_latents(indices: range, codec_path: Path, folder: Path) -> None:
    """Fill rows `indices` of the latent pool in `folder` (in a worker process)."""
    torch.set_num_threads(1)
    codec = load_codec(codec_path)
    rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("latents", "later", "features")}
    half = 4 * ((BASE_FRAMES - 1) // 8)
    for index in indices:
        clip = training_clip(index, BASE_FRAMES)
        video = clip.video().movedim(1, 0)[None] * 2 - 1  # [1, 3, T, S, S]
        with torch.no_grad():
            rows["latents"][index] = codec.encode(video)[0].half().numpy()
            rows["later"][index] = codec.encode(video[:, :, half:])[0].half().numpy()
        features = clip.features()[0].half().numpy()
        rows["features"][index, : len(features)] = features


def latent_pool(out: Path, count: int) -> dict[str, np.ndarray]:
    """Training clips as latents [N, 16, F, h, w], their second half as a clip of its own (windows begin in mid-speech)
    and audio features [N, L, C], all fp16, rendered and encoded once."""
    folder = out / f"latents_{count}"
    if not folder.exists():
        beside = folder.with_suffix(".part")
        beside.mkdir(exist_ok=True)
        latents, later = ((count, CHANNELS, 1 + (BASE_FRAMES - 1) // n, SIZE // 8, SIZE // 8) for n in (4, 8))
        features = (count, token_count(math.ceil(BASE_FRAMES / FPS * RATE)), FEATURES)
        for name, shape in {"latents": latents, "later": later, "features": features}.items():
            np.lib.format.open_memmap(beside / f"{name}.npy", "w+", np.float16, shape)
        in_parallel(draw_latents, count, out / "codec.safetensors", beside)
        os.replace(beside, folder)
    return {name: np.load(folder / f"{name}.npy") for name in ("latents", "later", "features")}
