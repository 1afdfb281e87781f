"""Held-out videos of the miniature as files: folders that train.evaluate compares like anybody's.

Clips, noise and sampling are those of Table 3's miniature (miniature_report.py). A video's metadata says which clip of
which split it answers, so that the judge can look up its truth. Pictures are enlarged by whole pixels: chroma then
loses nothing to H.264, which at 64 x 64 would blur more than methods differ.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.media import VideoWriter, write_wav
from fantasy_core.miniature.components import WEIGHTS, load_components
from fantasy_core.miniature.speech import RATE
from fantasy_core.miniature.world import FPS, Clip
from fantasy_core.pair_rules import DIMENSIONS
from fantasy_core.progress import Progress
from train.miniature_candidates import SHIFT, STEPS
from train.miniature_evaluate import Experts, ceiling, experts_of, generate, held_out
from train.miniature_report import PIECE

ENLARGED, CRF = 4, 8
SHIPPED = Experts({d: WEIGHTS / f"{d}.safetensors" for d in DIMENSIONS}, str(WEIGHTS / "gate.safetensors"))


@dataclass(frozen=True)
class Series:
    """What is written into a folder: held-out clips of a split through the codec (`real`), or as the miniature of
    `base`, with experts or without, makes them of their first frame and voice."""

    name: str
    base: Path
    split: str
    count: int
    frames: int
    sampling: dict[str, float]
    experts: Experts | None = None
    real: bool = False


def series_of(args: argparse.Namespace) -> list[Series]:
    """real, base, and experts (those of the flags, or the shipped ones with their gate)."""
    sampling = {
        "steps": STEPS if args.steps is None else args.steps,
        "shift": SHIFT if args.shift is None else args.shift,
        "scale": 1.0 if args.scale is None else args.scale,
    }
    told = (args.base or WEIGHTS, args.split, args.count, args.frames, sampling)
    experts = experts_of(args) or (SHIPPED if args.base is None else None)
    found = [Series("real", *told, real=True), Series("base", *told)]
    return [*found, Series("experts", *told, experts)] if experts else found


def write_videos(out: Path, series: list[Series]) -> None:
    """OUT/NAME/SPLIT_0000.mp4 ... of every series, in processes; videos that are there already stay."""
    jobs = [(out, one, first) for one in series for first in range(0, one.count, PIECE)]
    with (
        ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers,
        Progress("videos", len(jobs)) as progress,
    ):
        for _ in workers.map(write_piece, *zip(*jobs, strict=True)):
            progress.step()


@torch.inference_mode()
def write_piece(out: Path, series: Series, first: int) -> None:
    """A few clips, sampled together with noise of their own (in a worker process)."""
    torch.set_num_threads(1)
    clips = held_out(series.split, min(PIECE, series.count - first), series.frames, first)
    paths = [out / series.name / f"{series.split}_{first + k:04d}.mp4" for k in range(len(clips))]
    if all(path.is_file() for path in paths):
        return
    components = load_components(folder=series.base)
    if series.real:
        videos = ceiling(components, clips)
    else:
        videos = generate(components, clips, **series.sampling, seed=first, experts=series.experts)
    for number, (path, video, clip) in enumerate(zip(paths, videos, clips, strict=True), first):
        write_clip(path, video, clip, {"split": series.split, "clip": number})


def write_clip(path: Path, video: Tensor, clip: Clip, truth: dict[str, str | int]) -> None:
    """A video [T, 3, S, S] with the voice of its clip, and in its metadata which clip that is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    large = video.clamp(0, 1).repeat_interleave(ENLARGED, 2).repeat_interleave(ENLARGED, 3)
    with tempfile.TemporaryDirectory() as folder:
        write_wav(Path(folder) / "voice.wav", clip.waveform, RATE)
        told = {"fps": Fraction(FPS), "sound": Path(folder) / "voice.wav", "settings": {"miniature": truth}, "crf": CRF}
        with VideoWriter(path, **told) as writer:
            writer.write(large)
