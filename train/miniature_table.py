"""Table 3 of the paper in miniature: every method trained by the stages' own commands, and judged on held-out clips.

    python -m train.miniature --stage table --out runs/table             # main rows
    python -m train.miniature --stage table --out runs/table --full      # and the ablations

What is there already is not made again, so an interrupted table goes on. Videos are made without guidance: guidance is
another way to what preferences teach (follow the voice), and hides it. All settings were chosen on validation seeds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from fantasy_core.errors import UserError
from fantasy_core.experts import ExpertBank
from fantasy_core.flow import schedule, timestep
from fantasy_core.gate import weights_at
from fantasy_core.gate_files import load_gate
from fantasy_core.gate_plot import save_plot
from fantasy_core.miniature.components import WEIGHTS, load_components
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_candidates import SHIFT, STEPS, make_candidates
from train.miniature_evaluate import Experts
from train.miniature_report import Protocol, Row, compare, judge_rows, write_report
from train.miniature_rollouts import make_rollouts
from train.miniature_rows import CLAIMS, RANKS, STANDARD, Size, experts_of, rows_of

KEPT = {"reference-errors": "cached", "reference-draws": 8}
LOOP = {"form": "joint", "batch": 8, "warmup": 10, "final-lr": 0.1, "shift": 8, "beta": 1000, "held-out-every": 0}
LORA = LOOP | KEPT | {"rank": 8}
OF = {
    "mn": {"lr": 3e-3, "anchor-weight": 0.2},
    "ls": {"lr": 5e-3, "anchor-weight": 0.3},
    "vq": {"lr": 2e-3, "anchor-weight": 0.6, "shift": 4},
    "full": {"lr": 2e-3, "anchor-weight": 0.3},
}
NO_ANCHOR = {"anchor-weight": 0}
PRINTED = {"lr": 1e-2, "start": "average", "reference": "backbone"} | KEPT
RECOMMENDED = {"gate-form": "linear", "lr": 2e-2, "anchor-weight": 0.3, "start": "sum", "reference": "initial-gate"}
SOFTMAX = {"gate-form": "softmax", "lr": 5e-3, "bias-lr": 2e-2}
ABLATIONS = {
    "softmax": SOFTMAX,
    "no_timestep": SOFTMAX | {"timestep": "false"},
    "expert_level": {"granularity": "expert"},
    "module_level": {"granularity": "module"},
}


@dataclass(frozen=True)
class Job:
    """A command of a stage, e.g. ("train.expert", ("--out", ...)), and the file in which its output goes."""

    module: str
    arguments: tuple[str, ...]
    log: Path


def flags(settings: dict) -> tuple[str, ...]:
    return tuple(part for name, value in settings.items() for part in (f"--{name}", str(value)))


def work(job: Job) -> None:
    """In a process of its own. Raises UserError with the last words of a command that failed."""
    torch.set_num_threads(1)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = importlib.import_module(job.module).main(list(job.arguments))
    if code:
        raise UserError(
            f"{job.module} failed",
            got=job.log.read_text()[-800:],
            expected="a run to its end",
            do=f"see {job.log}; the same command goes on from here",
        )


def in_parallel(jobs: Sequence[Job], what: str) -> None:
    """A process for each core, started anew: autograd does not survive a fork."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        for _ in tqdm(workers.map(work, jobs), total=len(jobs), desc=what):
            pass


@dataclass(frozen=True)
class World:
    """A folder with candidates and their pairs."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def pair(self, kind: str, margin: float) -> Path:
        """The folder of pairs: by dimension, and `full` ones of this kind."""
        out = self.folder / f"pairs_{kind}"
        files = {"videos": self.folder / "videos.jsonl", "scores": self.folder / "scores.jsonl", "out": out}
        rules = {"margin": margin, "signs": "false", "full": kind, "check-real": "false", "own": "miniature"}
        work(Job("train.pairs", flags(files | rules), self.folder / f"pairs_{kind}.txt"))
        return out


class Table:
    """Everything in a folder: candidates, pairs, experts, gates, scores, the report."""

    def __init__(self, out: Path, size: Size, *, full: bool):
        self.out, self.size, self.full = out, size, full

    def train(self) -> None:
        """What the rows need, in the order of the paper: candidates, pairs, experts, gates."""
        size = self.size
        world = self.candidates("world", size.inputs)
        real, by_mean = world.pair("real", size.margin), world.pair("mean", size.mean_margin)
        jobs = []
        for seed in range(size.seeds):
            jobs += [self.lora(dimension, dimension, real, world, seed) for dimension in DIMENSIONS]
            jobs.append(self.lora("dpo", "full", real, world, seed))
            jobs.append(self.lora("dpo_mean", "full", by_mean, world, seed))
            jobs.append(self.lora("sft", "full", real, world, seed, loss="sft", **NO_ANCHOR))
            for rank in RANKS if self.full else ():
                jobs += [self.lora(f"{d}_rank{rank}", d, real, world, seed, rank=rank) for d in DIMENSIONS]
        in_parallel(jobs, "experts and single LoRAs")

        own, jobs = [], []
        for seed in range(size.seeds):  # what the experts' sum makes of inputs that were not used before
            experts = Experts(experts_of(self.out, self.size, seed), "constant:1")
            own.append(self.candidates(f"world_sum-{seed}", size.on_policy, skip=size.inputs, experts=experts))
        mined = [one.pair("mined", size.mined_margin) for one in own]
        for seed in range(size.seeds):
            jobs.append(self.lora("dpo_mined", "full", mined[seed], own[seed], seed))
            jobs.append(self.lora("sft_mined", "full", mined[seed], own[seed], seed, loss="sft", **NO_ANCHOR))
        for seed in range(size.gate_seeds):
            of = seed % size.seeds
            jobs.append(self.gate("tlpo_printed", real, world, seed, PRINTED))
            jobs.append(self.gate("tlpo", mined[of], own[of], seed, RECOMMENDED))
            if self.full:
                told = ABLATIONS.items()
                jobs += [self.gate(f"tlpo_{n}", mined[of], own[of], seed, RECOMMENDED | changed) for n, changed in told]
        if self.full:
            for seed in range(size.seeds):
                jobs.append(self.lora("ipo", "full", real, world, seed, loss="ipo"))
                jobs += [self.gate(f"tlpo_rank{r}", real, world, seed, PRINTED, rank=r) for r in RANKS]
                jobs.append(self.lora("simpo", "full", real, world, seed, loss="simpo", beta=0, lr=3e-4, **NO_ANCHOR))
        in_parallel(jobs, "gates and controls")
        if size.rollouts:
            in_parallel([self.fit(seed) for seed in range(size.seeds)], "fitted schedules")

    def candidates(self, name: str, count: int, *, skip: int = 0, experts: Experts | None = None) -> World:
        folder, frames = self.out / name, self.size.frames
        if not (folder / "scores.jsonl").is_file():
            make_candidates(WEIGHTS, folder, count=count, frames=frames, skip=skip, experts=experts)
        return World(folder)

    def lora(self, name: str, dimension: str, pairs: Path, world: World, seed: int, **more) -> Job:
        told = LORA | OF[dimension] | {"iterations": self.size.iterations, "dimension": dimension} | more
        files = {"pairs": pairs / f"pairs_{dimension}.jsonl", "cache": world.cache, "out": self.out / f"{name}-{seed}"}
        return Job("train.expert", flags(told | {"seed": seed} | files), self.out / f"{name}-{seed}.txt")

    def gate(self, name: str, pairs: Path, world: World, seed: int, settings: dict, rank: int | None = None) -> Job:
        told = LOOP | {"iterations": self.size.gate_iterations, "seed": seed} | settings
        files = {"pairs": pairs / "pairs_full.jsonl", "cache": world.cache, "out": self.out / f"{name}-{seed}"}
        named = tuple(f"{name}={path}" for name, path in experts_of(self.out, self.size, seed, rank).items())
        return Job("train.gate", ("--expert", *named, *flags(told | files)), self.out / f"{name}-{seed}.txt")

    def fit(self, seed: int) -> Job:
        """train.gate fit, on rollouts of inputs that nothing was trained on."""
        folder, experts = self.out / f"rollouts-{seed}", experts_of(self.out, self.size, seed)
        if not (folder / "scores.jsonl").is_file():
            told = {"inputs": self.size.rollouts, "each": 8, "frames": self.size.frames, "seed": seed}
            make_rollouts(WEIGHTS, folder, experts, skip=self.size.inputs + self.size.on_policy, **told)
        files = {"rollouts": folder / "rollouts.jsonl", "scores": folder / "scores.jsonl"}
        arguments = flags(files | {"out": self.out / f"fitted-{seed}"})
        named = tuple(f"{name}={path}" for name, path in experts.items())
        return Job("train.gate", ("fit", "--expert", *named, *arguments), self.out / f"fitted-{seed}.txt")


def make_table(out: Path, *, split: str, full: bool, size: Size = STANDARD) -> dict:
    """Train, judge, report: OUT/table_SPLIT.md, .json and .png, and a heat map of each kind of gate."""
    table = Table(out, size, full=full)
    table.train()
    protocol, rows = Protocol(WEIGHTS, split, size.clips, size.frames), rows_of(out, size, ABLATIONS if full else ())
    scores, real = judge_rows(protocol, rows, out / f"scores_{split}")
    result = compare(scores, real, "baseline", rows, CLAIMS, size.seeds)
    fits = [out / f"fitted-{seed}" / "fit.json" for seed in range(size.seeds if size.rollouts else 0)]
    result["headroom"] = [json.loads(file.read_text("utf-8"))["headroom"] for file in fits]
    write_report(result, protocol.about, out, f"table_{split}")
    for row in rows:
        if row.name.startswith(("tlpo", "fitted")):
            plot_gate(row, out / f"gate_{row.name}.png")
    return result


def plot_gate(row: Row, path: Path) -> None:
    """The first seed's weights, block by step."""
    sigmas, experts = schedule(STEPS, SHIFT), row.versions[0]
    with load_components().dit() as dit:
        bank = ExpertBank.load(experts.files, dit)
        gate = load_gate(experts.gate, hashes=bank.hashes, host=dit)
        times = torch.tensor([timestep(float(sigma)) for sigma in sigmas[:-1]])
        with torch.no_grad():
            save_plot(path, weights_at(gate, times, dit.time_embedding), bank.names, sigmas)
