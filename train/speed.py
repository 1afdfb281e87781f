"""How fast a machine trains: a true iteration of a small model, timed whole and shared out by torch's profiler.

The rates that come of it (linears, attention, what the rest moves, what a block takes however few its tokens) predict
other sizes, which FLOPs alone do not: norms and rotations take half of the time of a narrow model and little of a wide
one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, replace
from itertools import combinations

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fantasy_core.estimate import AUDIO_ROWS, CLIP_TOKENS
from fantasy_core.experts import Expert, ExpertBank, LowRank
from fantasy_core.fusion import attach
from fantasy_core.fusion.hosts import host_of, split_address
from fantasy_core.gate import Beside, FusionGate
from fantasy_core.preference import Objective
from fantasy_core.wan import WanConfig, WanDiT
from train.cost import Grid, Rates, Training, Work, unit_work
from train.distributed import World
from train.errors import Draw, Errors, Row
from train.gradient import gradient
from train.reference import LiveReference
from train.trainer import Switch, Unit

GRIDS = ((3, 8, 8), (5, 16, 16), (9, 16, 16), (9, 32, 32), (21, 32, 32))  # until an iteration takes LONG
LONG, ROUNDS = 1.0, 3  # seconds; the fastest counts, since whatever else a machine does only adds
PRODUCTS = {"mm", "addmm", "addmm_", "baddbmm", "_scaled_mm", "slow_conv3d_forward", "mkldnn_convolution"}
PRODUCTS |= {"cudnn_convolution", "_convolution", "convolution"}


def calibrate(training: Training, grid: Grid, videos: int, device: torch.device) -> tuple[Rates, str]:
    """Rates of this training on `device`, and what they were measured with: two blocks of the model, as many tokens as
    an iteration of about a second allows."""
    blocks = min(2, training.config.num_layers)
    ranks = {address: rank for address, rank in training.ranks.items() if split_address(address)[0] < blocks}
    small = replace(training, config=replace(training.config, num_layers=blocks), ranks=ranks)
    for tried in GRIDS:
        size = tuple(min(pair) for pair in zip(tried, grid, strict=True))
        iteration = TrueIteration(small, size, videos, device)
        iteration()
        if _seconds(iteration) > LONG or size == grid:
            break
    return measure(iteration), f"{blocks} blocks, {' x '.join(map(str, size))} tokens, {videos} videos"


def measure(iteration: TrueIteration, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Rates of an iteration that has run before: its work over its time, in the profiler's proportions, less of the
    rest what an iteration takes on next to no tokens."""
    device = iteration.device
    least = TrueIteration(iteration.training, (1, 1, 1), iteration.videos, device)
    least()
    seconds, floor = (min(_seconds(one, clock) for _ in range(ROUNDS)) for one in (iteration, least))
    with profile(activities=_activities(device)) as profiled:
        for _ in range(ROUNDS):
            iteration()
        _wait(device)
    linears, attention, rest = (seconds * share for share in _shares(profiled, device))
    floor = min(floor, rest / 2)  # of a size so small that all is floor
    took = (linears, attention, rest - floor, floor)
    return Rates(*(one / seconds for one, seconds in zip(astuple(iteration.work), took, strict=True)))


def _seconds(iteration: TrueIteration, clock: Callable[[], float] = time.perf_counter) -> float:
    _wait(iteration.device)
    began = clock()
    iteration()
    _wait(iteration.device)
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")


def _shares(profiled: profile, device: torch.device) -> tuple[float, float, float]:
    """Which part of the time linears, attention and the rest took."""
    took = {"linears": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profiled.key_averages():
        if event.device_type.name != "CPU":  # a kernel, whose time its operator has already
            continue
        name = event.key.rpartition("::")[2]
        fused = "attention" in name or "flash" in name or name == "bmm"
        kind = "attention" if fused else "linears" if name in PRODUCTS else "rest"
        took[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return tuple(part / sum(took.values()) for part in took.values())


# ---- an iteration of the trainer's own parts, on random numbers ----


class TrueIteration:
    """What `trainer.train` does in an iteration of one unit, on a model of random weights."""

    def __init__(self, training: Training, grid: Grid, videos: int, device: torch.device):
        self.training, self.grid, self.videos, self.device = training, grid, videos, device
        self.data = RandomPairs(training.config, grid, videos)
        self.dit = _random_dit(training, device)
        self.bank = _random_bank(training, self.dit).to(device)
        (name,), blocks = self.bank.names, training.config.num_layers
        self.gate = FusionGate(blocks, training.config.dim, 1, names=(name,)) if training.gate else None
        if self.gate is None:
            self.bank.requires_grad_()
        self.switch = Switch((self.gate or Beside(None, {name: 1.0}, blocks)).to(device), self.bank.names, blocks)
        self.parameters = list((self.gate or self.bank).parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-9)
        self.objective = Objective("simpo" if training.reference == "none" else "dpo", beta=1.0)  # never saturated
        self.reference = self.switch.off if training.reference == "backbone" else nullcontext

    @property
    def work(self) -> Work:
        return unit_work(self.training, self.grid, self.videos)

    def errors(self) -> Errors:
        rows = [Row(name, encoded, Draw(0.5, (0,))) for name, encoded in self.data.cache.items()]
        return Errors(self.dit, rows, self.data.unit.pairs, masked=False)

    def attached(self) -> AbstractContextManager:
        return attach(self.dit, self.bank, self.switch, "stacked")

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        known, form = LiveReference(self.reference), self.training.form
        with self.attached():
            gradient(form, [self.errors()], 1, self.parameters, self.objective, known, World(self.device))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


class RandomPairs:
    """One unit of random videos, as `trainer.PairData` has them."""

    def __init__(self, config: WanConfig, grid: Grid, videos: int):
        time, down, across = (size * patch for size, patch in zip(grid, config.patch_size, strict=True))
        sizes = {"latents": (config.out_dim, time, down, across), "text": (1, config.text_dim)}
        sizes |= {"image": (config.condition_dim - 4, time, down, across)} if config.condition_dim else {}
        sizes |= {"audio": (time, AUDIO_ROWS, config.audio_token_dim)} if config.audio_token_dim else {}
        sizes |= {"clip": (CLIP_TOKENS, config.clip_dim)} if config.clip_dim else {}
        self.cache = {f"{n}": {name: torch.randn(size) for name, size in sizes.items()} for n in range(videos)}
        self.unit = Unit("random", tuple(self.cache), tuple(combinations(range(videos), 2)))


def _random_dit(training: Training, device: torch.device) -> WanDiT:
    with torch.device("meta"):
        dit = WanDiT(training.config).to(training.dtype)
    dit = dit.to_empty(device=device).requires_grad_(False)
    dit.checkpointing = "blocks" if training.checkpointing else "none"
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.02)  # no zeros, which some devices multiply faster
    return dit


def _random_bank(training: Training, dit: WanDiT) -> ExpertBank:
    shapes, pairs = host_of(dit).shapes(), {}
    for address, rank in training.ranks.items():
        size_in, size_out = shapes[address]
        pairs[address] = LowRank(torch.randn(rank, size_in) / size_in**0.5, 1e-3 * torch.randn(size_out, rank))
    return ExpertBank.stack([Expert("mn", pairs)], host_of(dit))
