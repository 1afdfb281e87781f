"""Figure 2 of the paper in miniature: candidates, labels, a critic, its scores and its pairs, by the same commands.

    python -m train.miniature --stage critic --out runs/critic

Candidates are mp4 files of the miniature's world: the real clip of every input, what the miniature makes of it, and
the same overexposed, as too much guidance does. The exact judge scores them (train.score --judge miniature); three
people are played by the judge with one answer in ten wrong, a fourth by the judge (train.annotate). A Thinker of random
weights learns their labels of visual quality (train.critic), scores all videos (train.score), is measured on inputs it
has not seen (train.critic eval), and its scores become pairs (train.pairs). So tiny a Thinker, from nothing and in
minutes, can be taught to see a flaw of the whole picture; lip sync and motion it did not learn, and is not taught. What
is there already is not made again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fantasy_core.manifest import sha256
from fantasy_core.media import VideoWriter, write_wav
from fantasy_core.media.files import replacing
from fantasy_core.miniature.components import WEIGHTS, load_components
from fantasy_core.miniature.speech import RATE
from fantasy_core.miniature.world import FPS, Clip
from fantasy_core.pair_rules import DIMENSIONS
from train.degrade import overexpose
from train.journal import read_parts
from train.miniature_candidates import SHIFT, STEPS, draw_inputs
from train.miniature_evaluate import sample_latents, to_video
from train.miniature_table import Job, flags, work
from train.miniature_thinker import save_thinker
from train.run import write_rows

WRONG = 0.1  # share of an annotator's answers that are not the judge's
TOO_BRIGHT = 2.0
LEARN = {"dimension": "vq", "lr": 5e-3, "rank": 16, "alpha": 32, "batch": 32, "validation": 0}
ASKED = {"views": "miniature", "dtype": "fp32", "workers": 0}


@dataclass(frozen=True)
class Size:
    """Inputs, videos that the miniature makes of each, frames, denoising steps, epochs of the critic, and the share of
    inputs that it is tested on."""

    inputs: int = 64
    made: int = 2
    frames: int = 25
    steps: int = STEPS
    epochs: float = 12.0
    test_share: float = 0.4


@dataclass(frozen=True)
class Row:
    """A line of videos.jsonl."""

    video: str
    input: str
    path: str
    sha256: str
    source: str
    variant: int
    fps: float
    frames: int
    split: str = "train"


@torch.inference_mode()
def videos_of(clips: list[Clip], size: Size) -> Iterator[tuple[str, int, Tensor]]:
    """(source, variant, video [B, T, 3, S, S]) of a few inputs."""
    components = load_components(folder=WEIGHTS)
    found = {("real", 0): torch.stack([clip.video() for clip in clips])}
    for variant in range(size.made):
        told = {"steps": size.steps, "shift": SHIFT, "scale": 1.0, "seed": variant}
        found["miniature", variant] = to_video(components.codec, sample_latents(components, clips, **told))
    for variant in range(size.made):
        bright = [overexpose(one.clamp(0, 1), TOO_BRIGHT) for one in found["miniature", variant]]
        found["miniature", size.made + variant] = torch.stack(bright)
    for (source, variant), video in found.items():
        yield source, variant, video


def make_videos(out: Path, size: Size) -> None:
    """videos.jsonl and the files beside it: without loss but for the colours' half resolution, and with their sound."""
    if (out / "videos.jsonl").is_file():
        return
    (out / "videos").mkdir(parents=True, exist_ok=True)
    clips, rows = draw_inputs(size.inputs, size.frames), []
    for first in tqdm(range(0, size.inputs, 8), desc="candidates", unit="x8"):
        for source, variant, videos in videos_of(clips[first : first + 8], size):
            for number, video in enumerate(videos, first):
                name = f"{number:05d}_{source}_{variant}"
                path = out / "videos" / f"{name}.mp4"
                write_clip(path, video, clips[number])
                told = {"source": source, "variant": variant, "fps": FPS, "frames": size.frames}
                rows.append(Row(name, f"{number:05d}", f"videos/{path.name}", sha256(path), **told))
    write_rows(out / "videos.jsonl", rows)


def write_clip(path: Path, video: Tensor, clip: Clip) -> None:
    sound = path.with_suffix(".wav")
    write_wav(sound, clip.waveform, RATE)
    with VideoWriter(path, FPS, sound=sound, crf=1) as writer:
        writer.write(video.clamp(0, 1))
    sound.unlink()


def write_votes(out: Path, seed: int = 0) -> None:
    """labels.csv: what three people of whom each errs now and then, and an arbiter who does not, say of every video."""
    rng = np.random.default_rng(seed)
    with replacing(out / "labels.csv") as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video", "dimension", "a1", "a2", "a3", "arbiter"])
        for row in sorted(read_parts(out / "judged"), key=lambda row: row["video"]):
            for dimension in DIMENSIONS:
                truth = int(row[f"z_{dimension}"] > 0)
                votes = [truth ^ int(wrong) for wrong in rng.random(3) < WRONG]
                table.writerow([row["video"], dimension, *votes, "" if len({*votes}) == 1 else truth])


def chain(out: Path, size: Size) -> Iterator[Job]:
    """The commands, in order; each is made when the one before it is done."""

    def job(module: str, name: str, told: dict, *first: str) -> Job:
        return Job(module, (*first, *flags(told | {"out": out / name})), out / f"{name}.txt")

    videos, labels = {"videos": out / "videos.jsonl"}, {"annotations": out / "annotations" / "annotations.jsonl"}
    asked = ASKED | {"base": out / "base"}
    yield job("train.score", "judged", videos | {"judge": "miniature", "workers": 0})
    write_votes(out)
    told = videos | {"labels": out / "labels.csv", "test-share": size.test_share}
    yield job("train.annotate", "annotations", told, "adjudicate")
    learn = LEARN | asked | {"epochs": size.epochs}
    yield job("train.critic", "critic", videos | labels | learn)
    yield job("train.score", "base_scores", videos | asked)
    yield job("train.score", "scores", videos | asked | {"critic": out / "critic" / "adapter"})
    scored = {"scores": out / "scores", "base-scores": out / "base_scores"}
    yield job("train.critic", "report", labels | scored, "eval")
    rules = {"margin": 1.0, "check-real": "false", "own": "miniature"}  # a critic of one dimension checks none in all
    yield job("train.pairs", "pairs", videos | {"scores": out / "scores"} | rules)


def make_critic(out: Path, size: Size = Size(), seed: int = 0) -> dict:
    """The whole chain in OUT; the report of `train.critic eval`."""
    make_videos(out, size)
    if not (out / "base" / "config.json").is_file():
        save_thinker(out / "base", seed)
    for job in chain(out, size):
        print(f"{job.module}: see {job.log}")
        work(job)
    print((out / "report" / "report.md").read_text("utf-8"))
    return json.loads((out / "report" / "report.json").read_text("utf-8"))
