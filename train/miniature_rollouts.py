"""Rollouts of the miniature for `train.gate fit`: videos under random weights of the experts, scored by the judge."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fantasy_core.experts import ExpertBank
from fantasy_core.flow import schedule, timestep
from fantasy_core.fusion import attach, host_of
from fantasy_core.miniature.components import load_components
from fantasy_core.miniature.judge import judge
from fantasy_core.miniature.world import Clip
from fantasy_core.pair_rules import DIMENSIONS
from train.gate_fit import Rollout
from train.miniature_candidates import SHIFT, STEPS, Row, draw_inputs, standardised
from train.miniature_evaluate import sample_latents, to_video
from train.run import write_rows

MOST = 2.0  # weights are drawn from 0 to this


class Cells:
    """A gate with weights [B, T, J, E] of its own for every sample, constant in ranges of timesteps and blocks."""

    def __init__(self, weights: Tensor, names: tuple[str, ...], times: list[float], blocks: list[int], num_blocks: int):
        self.weights, self.names, self.num_blocks = weights, names, num_blocks
        self.times = torch.tensor(times)
        self.range_of = torch.bucketize(torch.arange(num_blocks), torch.tensor(blocks), right=True)  # [num_blocks]

    def __call__(self, t_emb: Tensor | None, times: Tensor) -> Tensor:
        """-> w [B, num_blocks, 1, E]."""
        step = (times[0] < self.times).sum()  # all samples are at one timestep; most noise first
        return self.weights[:, step][:, self.range_of, None]


def ranges(num_blocks: int) -> tuple[list[float], list[int]]:
    """Halves of the steps, and of the blocks."""
    return [timestep(float(schedule(STEPS, SHIFT)[STEPS // 2 - 1])) - 1e-3], [num_blocks // 2]


@torch.inference_mode()
def piece(folder: Path, clips: list[Clip], weights: Tensor, files: dict[str, Path], seed: int) -> dict[str, Tensor]:
    """Scores [B] of clips, each made with its own weights (in a process of its own)."""
    torch.set_num_threads(1)
    components = load_components(folder=folder)
    with components.dit() as dit:
        host = host_of(dit)
        bank = ExpertBank.load(files, host)
        gate = Cells(weights, bank.names, *ranges(host.num_blocks), host.num_blocks)
        with attach(host, bank, gate, "stacked"):
            latents = sample_latents(components, clips, steps=STEPS, shift=SHIFT, scale=1.0, seed=seed)
    video = to_video(components.codec, latents)
    found = judge(video, torch.stack([c.identity for c in clips]), torch.stack([c.mouth for c in clips]))
    return {dimension: found[dimension].clone() for dimension in DIMENSIONS}


def make_rollouts(
    folder: Path,
    out: Path,
    files: dict[str, Path],
    *,
    inputs: int,
    each: int,
    frames: int,
    seed: int = 0,
    skip: int = 0,
) -> None:
    """rollouts.jsonl and scores.jsonl in `out`: `each` rollouts of `inputs` clips of the training seeds."""
    with load_components(folder=folder).dit() as dit:
        times, blocks = ranges(len(dit.blocks))
    drawn = torch.rand(inputs, each, 2, 2, len(files), generator=torch.Generator().manual_seed(seed)) * MOST
    jobs = [
        (folder, [clip] * each, weights, files, seed * 10**6 + i)
        for i, (clip, weights) in enumerate(zip(draw_inputs(inputs, frames, skip), drawn, strict=True))
    ]
    rollouts, scores = [], {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        running = [workers.submit(piece, *job) for job in jobs]
        for number, job in enumerate(tqdm(running, desc="rollouts", unit="input")):
            for n, told in enumerate(drawn[number].tolist()):
                name = f"{skip + number:05d}_{n}"
                rollouts.append(Rollout(name, f"{skip + number:05d}", list(files), times, blocks, told))
                scores[name] = {d: float(values[n]) for d, values in job.result().items()}
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "rollouts.jsonl", rollouts)
    rows = [Row(one.video, one.input, "miniature", 0, frames) for one in rollouts]
    write_rows(out / "scores.jsonl", standardised(rows, scores))
