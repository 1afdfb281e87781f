"""How well the miniature speaks: lip sync, motion and quality on people and voices it has never seen.

Clips of a split are generated in one window at the default guidance and given to the exact judge. Beside them, as marks
to compare with: the real clips through the codec (the ceiling), and the same videos judged against a shuffled voice and
against the voice half a second late (controls: what a mouth that moves by itself would score). Intervals are 95 %
bootstraps over clips.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fantasy_core.audio import load_voice, trim, window, window_ranges
from fantasy_core.encoders import image_condition
from fantasy_core.experts import ExpertBank
from fantasy_core.flow import draw_noise, guide, sample, schedule, timestep
from fantasy_core.fusion import attach, host_of
from fantasy_core.gate_files import load_gate
from fantasy_core.manifest import sha256
from fantasy_core.manual_gates import KINDS, manual_gate
from fantasy_core.media import contact_sheet
from fantasy_core.miniature.codec import Codec
from fantasy_core.miniature.components import MiniatureComponents, load_components
from fantasy_core.miniature.judge import judge, lip_sync
from fantasy_core.miniature.speech import RATE
from fantasy_core.miniature.world import FPS, TEST, VALIDATION, Clip, draw_clip
from fantasy_core.mixture import named


@dataclass(frozen=True)
class Experts:
    """Expert files by name, and their gate: a file, or a gate by hand (None: 1 each)."""

    files: dict[str, Path]
    gate: str | None = None

    @property
    def identity(self) -> str:
        """Their contents: names, hashes, gate."""
        told = [f"{name} {sha256(path)}" for name, path in self.files.items()]
        gate = sha256(Path(self.gate)) if self.gate and Path(self.gate).is_file() else self.gate
        return ", ".join([*told, f"gate {gate}"])


SPLITS = {"validation": VALIDATION, "test": TEST}
LATE = 12  # frames of the shifted control, about half a second


def held_out(split: str, count: int, frames: int, first: int = 0) -> list[Clip]:
    """`count` clean clips of a split from the `first` on: the first of every seed, then the second ..."""
    seeds = SPLITS[split]
    return [draw_clip(seeds[i % len(seeds)], i // len(seeds), frames) for i in range(first, first + count)]


def generate(components: MiniatureComponents, clips: list[Clip], **settings) -> Tensor:
    """Animate frame 0 of every clip by its voice, in one window -> video [B, T, 3, S, S] in 0..1."""
    return to_video(components.codec, sample_latents(components, clips, **settings))


@torch.inference_mode()
def sample_latents(
    components: MiniatureComponents,
    clips: list[Clip],
    *,
    steps: int,
    shift: float,
    scale: float,
    seed: int = 0,
    experts: Experts | None = None,
) -> Tensor:
    """What the base, with experts or without, makes of frame 0 of every clip and its voice -> latents [B, 16, F, h,
    w]."""
    frames, size = len(clips[0].pose), len(clips)
    portraits = [clip.video()[:1] * 2 - 1 for clip in clips]
    condition = torch.cat([image_condition(components.encode, portrait, frames) for portrait in portraits])
    tokens = torch.cat([components.voice(torch.from_numpy(clip.waveform)) for clip in clips])
    audio = window(tokens, window_ranges(tokens.shape[1], frames, fps=FPS))
    text = components.text([""] * size)
    noise = torch.stack([draw_noise(condition[i, 4:].shape, seed, i) for i in range(size)])
    with components.dit() as dit, hung(dit, experts, schedule(steps, shift)):

        def velocity(latents: Tensor, sigma: float) -> Tensor:
            time = latents.new_full((size,), timestep(sigma))
            silent = None if scale == 1 else dit(latents, time, text, condition=condition)
            heard = dit(latents, time, text, condition=condition, audio=audio)
            return guide(None, silent, heard, scale, scale, same_text=True)

        return sample(velocity, noise, schedule(steps, shift))


@contextmanager
def hung(dit, experts: Experts | None, sigmas: Tensor):
    """The DiT with experts and their gate, if there are any."""
    if experts is None:
        yield
        return
    host = host_of(dit)
    bank = ExpertBank.load(experts.files, host)
    if (experts.gate or "constant").partition(":")[0] in KINDS:
        text = experts.gate or "constant:1"
        gate = manual_gate(text, bank.names, host.num_blocks, sigmas)
    else:
        gate = load_gate(experts.gate, hashes=bank.hashes, host=host)
    with attach(host, bank, gate, "auto", per_sample=False):
        yield


@torch.inference_mode()
def to_video(codec: Codec, latents: Tensor) -> Tensor:
    """Latents [B, 16, F, h, w] -> video [B, T, 3, S, S] in 0..1."""
    return codec.decode(latents).movedim(1, 2) / 2 + 0.5


def interval(values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over clips."""
    rng = np.random.default_rng(seed)
    x = values.double().numpy()
    means = x[rng.integers(len(x), size=(4000, len(x)))].mean(1)
    return float(x.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def score(video: Tensor, clips: list[Clip]) -> dict[str, Tensor]:
    """The judge's scores [B] of videos, with the two controls."""
    mouth = torch.stack([clip.mouth for clip in clips])
    found = judge(video, torch.stack([clip.identity for clip in clips]), mouth)
    opening = found["pose"][..., 2]
    shuffled = lip_sync(opening, mouth[..., 0].roll(1, 0))
    late = lip_sync(opening[:, :-LATE], mouth[:, LATE:, 0])
    kept = {name: found[name] for name in ("ls", "mn", "vq", "travel", "tremble", "error")}
    return {
        **kept,
        "ls_shuffled": shuffled,
        "ls_late": late,
        "vq_last": -10 * torch.log10(found["error"][:, -8:].mean(1) + 1e-6),
    }


@torch.inference_mode()
def ceiling(components: MiniatureComponents, clips: list[Clip]) -> Tensor:
    """The real clips through the codec -> video [B, T, 3, S, S] in 0..1."""
    real = torch.stack([clip.video() for clip in clips]).movedim(2, 1) * 2 - 1
    return to_video(components.codec, components.encode(real))


def evaluate_piece(folder: Path, clips: list[Clip], first: int, settings: dict) -> tuple[dict, dict, Tensor]:
    """Scores of the generated and of the real videos of a few clips, and the former (in a worker process)."""
    torch.set_num_threads(1)
    components = load_components(folder=folder)
    video = generate(components, clips, **settings, seed=first)
    return score(video, clips), score(ceiling(components, clips), clips), video


def table(rows: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """Markdown: one row per kind of video, means with 95 % intervals."""
    names = {"ls": "lip sync", "mn": "motion", "vq": "quality, dB", "vq_last": "last 8 frames, dB"}
    lines = ["| | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for row, found in rows.items():
        cells = ["{:.3g} [{:.3g}, {:.3g}]".format(*found[name]) if name in found else "" for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def experts_of(args: argparse.Namespace) -> Experts | None:
    """The experts that the flags name."""
    return Experts(dict(map(named, args.expert)), args.gate) if getattr(args, "expert", None) else None


def defaults_or(args: argparse.Namespace) -> dict:
    """The sampling settings of the flags, or the miniature's defaults; with the experts that are named."""
    defaults = MiniatureComponents.defaults
    return {
        "experts": experts_of(args),
        "steps": defaults.steps if args.steps is None else args.steps,
        "shift": defaults.shift if args.shift is None else args.shift,
        "scale": defaults.audio_scale if args.scale is None else args.scale,
    }


def evaluate(folder: Path, args: argparse.Namespace) -> None:
    """Print the table of a split; with `--report NAME` write NAME.json and NAME.png (real and generated,
    row by row)."""
    settings = defaults_or(args)
    clips = held_out(args.split, args.count, args.frames)
    pieces = [(clips[i : i + 4], i) for i in range(0, len(clips), 4)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        jobs = [workers.submit(evaluate_piece, folder, piece, first, settings) for piece, first in pieces]
        results = [job.result() for job in tqdm(jobs, desc=f"{args.split} clips", unit="x4")]
    generated, real = ({n: torch.cat([r[i][n] for r in results]) for n in results[0][i]} for i in (0, 1))
    kept = ("ls", "mn", "vq", "vq_last")
    rows = {
        "real clips through the codec": {name: interval(real[name]) for name in kept},
        "generated": {name: interval(generated[name]) for name in kept},
        "generated, against another voice": {"ls": interval(generated["ls_shuffled"])},
        "generated, against the voice half a second late": {"ls": interval(generated["ls_late"])},
    }
    print(f"{len(clips)} clips of {args.frames} frames, {args.split} seeds, {settings}\n\n{table(rows)}")
    if args.report:
        about = {"split": args.split, "clips": len(clips), "frames": args.frames, **settings}
        about["experts"] = None if settings["experts"] is None else str(settings["experts"])
        args.report.with_suffix(".json").write_text(json.dumps({"settings": about, "rows": rows}, indent=1))
        write_sheet(args.report.with_suffix(".png"), clips, torch.cat([video for _, _, video in results]))


def loudness(waveform: Tensor, frames: int) -> Tensor:
    """Log energy of a voice [n] between 200 and 3800 Hz around every frame -> [frames]."""
    spectrum = torch.stft(waveform, 1024, RATE // 50, window=torch.hann_window(1024), return_complex=True).abs()
    energy = torch.log(spectrum[13:244].square().sum(0) + 1e-6)  # 50 a second
    at = torch.arange(frames) * 50 / FPS
    below = at.floor().long().clamp(max=len(energy) - 2)
    return torch.lerp(energy[below], energy[below + 1], (at - below).clamp(max=1))


def high_pass(track: Tensor) -> Tensor:
    """Tracks [B, T] less their mean over the second around each frame."""
    reach = round(FPS / 2)
    smooth = torch.nn.functional.pad(track[:, None], (reach, reach), mode="replicate")
    return track - torch.nn.functional.avg_pool1d(smooth, 2 * reach + 1, 1)[:, 0]


def evaluate_voices(folder: Path, files: list[Path], args: argparse.Namespace) -> None:
    """Recorded human voices: how the drawn opening goes with its own voice's loudness, with the others' (the mean over
    them), and by how much better with its own, recording by recording.

    There is no truth for these, and loudness fixes a mouth only in part (`m` is loud and shut), so this is far below
    what lip sync in its own world is; but a mouth that did not listen would show no difference and no peak at lag 0.
    """
    components, settings = load_components(folder=folder), defaults_or(args)
    openings, voices = [], []
    for index, file in enumerate(files):
        clip = draw_clip(TEST[index], 0, args.frames)
        clip.waveform = trim(load_voice(file), args.frames, FPS).numpy()
        shown = judge(generate(components, [clip], **settings, seed=index), clip.identity[None], clip.mouth[None])
        openings.append(shown["pose"][0, :, 2])
        voices.append(loudness(torch.from_numpy(clip.waveform), args.frames))
    shown, heard = high_pass(torch.stack(openings)), high_pass(torch.stack(voices))
    lags = range(-10, 11)
    curve = [lip_sync(shown, heard.roll(lag, 1)).mean().item() for lag in lags]
    print(f"{len(files)} recorded voices, opening with loudness, mean correlation [95 %]")
    own = lip_sync(shown, heard)
    others = torch.stack([lip_sync(shown, heard.roll(k, 0)) for k in range(1, len(files))]).mean(0)
    for name, values in (("own voice", own), ("other voices", others), ("difference", own - others)):
        print(f"{name:<15}" + "{:.2f} [{:.2f}, {:.2f}]".format(*interval(values)))
    print(f"{'best lag':<15}{lags[int(np.argmax(curve))]} frames")


def write_sheet(path: Path, clips: list[Clip], videos: Tensor, people: int = 6, columns: int = 12) -> None:
    """Contact sheet: for each of the first people a row of the real clip and a row of the generated one."""
    every = -(-videos.shape[1] // columns)
    shown = [
        frames[::every] for clip, video in zip(clips[:people], videos, strict=False) for frames in (clip.video(), video)
    ]
    frames = torch.nn.functional.interpolate(torch.cat(shown), scale_factor=1.5, mode="bicubic").clamp(0, 1)
    contact_sheet(frames, path, columns=len(shown[0]))
