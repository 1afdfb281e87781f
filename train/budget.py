"""The plan of a run as a table: work, time, memory and disk, from settings alone or from a stage that was opened."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fantasy_core.estimate import PLANNING_RATES, told_bytes, told_flops, told_seconds
from fantasy_core.fusion.coefficients import ORDER
from fantasy_core.wan import WanConfig
from train.cost import (
    LOG_LINE,
    Grid,
    Memory,
    Rates,
    Training,
    Work,
    checkpoint_bytes,
    forward,
    memory,
    reference_work,
    uniform_ranks,
    unit_work,
)

if TYPE_CHECKING:
    from train.stage import Stage

SIGMAS = 9  # noise levels at which held-out pairs are looked at
ASSUMED = {name: Rates(rate, rate) for name, rate in PLANNING_RATES.items()}


@dataclass(frozen=True)
class Budget:
    """A run of `iterations` of `batch` units; `units` counts those of the data by (grid, videos). `looks` times the
    held-out videos pass. `str()` is a table for people."""

    training: Training
    units: Mapping[tuple[Grid, int], int]
    pairs: int
    batch: int
    iterations: int
    looks: int = 0
    held_out: int = 0  # videos
    cached: int = 0  # bytes of a video in a cache that is yet to be made
    gpus: int = 1
    rates: Mapping[str, Rates] = field(default_factory=lambda: ASSUMED)

    @property
    def unit(self) -> Work:
        """The mean of the units."""
        total = Work(0, 0, 0, 0)
        for (grid, videos), count in self.units.items():
            total += unit_work(self.training, grid, videos) * (count / sum(self.units.values()))
        return total

    @property
    def largest(self) -> tuple[Grid, int]:
        return max(self.units, key=lambda unit: memory(self.training, *unit).peak)

    @property
    def watching(self) -> Work:
        """All looks at the held-out videos, taken to be as large as the largest; the reference's pass is done once."""
        one = forward(self.training, self.largest[0]) * self.looks + reference_work(self.training, self.largest[0])
        return one * (SIGMAS * self.held_out if self.looks else 0)

    @property
    def work(self) -> Work:
        return self.unit * (self.batch * self.iterations) + self.watching

    @property
    def memory(self) -> Memory:
        grid, videos = self.largest  # one graph holds a whole batch, else a video
        return memory(self.training, grid, videos * (self.batch if self.training.form == "joint" else 1))

    def seconds(self, rates: Rates) -> float:
        return rates.seconds(self.work) / self.gpus

    def __str__(self) -> str:
        rows = [*self._work_rows(), *self._memory_rows(), *self._disk_rows()]
        return "\n".join(f"{label:<28}{text}" for label, text in rows if text)

    def _work_rows(self) -> list[tuple[str, str]]:
        (grid, videos), unit = self.largest, self.unit
        units, visits = sum(self.units.values()), self.batch * self.iterations
        sizes = f"; {len(self.units)} sizes, this the largest" if len(self.units) > 1 else ""
        gate, reference = self.training.gate, reference_work(self.training, grid) * videos
        share = reference.flops * (1 - self.training.kept) / unit_work(self.training, grid, videos).flops
        flops = self.work.flops
        return [
            ("trained", f"{self.training.trained:,} numbers of {'the gate' if gate else 'an expert'}"),
            ("data", f"{self.pairs:,} pairs in {units:,} units of {videos} videos{sizes}"),
            ("tokens of a video", f"{math.prod(grid):,} = {' x '.join(map(str, grid))}"),
            ("one unit", f"{told_flops(unit.flops)}, {share:.0%} of it the reference"),
            ("one iteration", f"{told_flops(unit.flops * self.batch)} = {self.batch} units"),
            ("all iterations", f"{told_flops(flops)} = {self.iterations:,}, {visits / units:.2f} epochs"),
            ("held-out pairs", f"{self.watching.flops / flops:.1%} of it" if self.looks else ""),
            *self._time_rows(),
        ]

    def _time_rows(self) -> list[tuple[str, str]]:
        assumed = self.rates is ASSUMED
        if assumed and self.training.dtype.itemsize != 2:
            return [("time", "give train.plan --calibrate: no rates are assumed for fp32")]
        told = (f"{name} {told_seconds(self.seconds(rates))}" for name, rates in self.rates.items())
        label = "time, assumed rates" if assumed else "time"
        return [(label, ", ".join(told) + (f", on {self.gpus} of them" if self.gpus > 1 else ""))]

    def _memory_rows(self) -> list[tuple[str, str]]:
        held, training = self.memory, self.training
        dtype = str(training.dtype).removeprefix("torch.")
        how = "a batch" if training.form == "joint" else "one video"
        how += ", blocks recomputed" if training.checkpointing else ", all kept"
        return [
            (f"memory, base {dtype}", told_bytes(held.base)),
            ("memory, experts fp32", told_bytes(held.experts) if held.experts else ""),
            ("memory, trained fp32", f"{told_bytes(held.state)}, with AdamW's moments and the gradient"),
            ("memory, videos' gradients", told_bytes(held.buffers)),
            (
                "memory, activations",
                f"{told_bytes(held.activations)}, {how}",
            ),
            ("memory, largest moment", f"{told_bytes(held.peak)}, and about a tenth for the allocator"),
        ]

    def _disk_rows(self) -> list[tuple[str, str]]:
        state, most = checkpoint_bytes(self.training), sum(count * videos for (_, videos), count in self.units.items())
        cache = (
            f"{told_bytes(self.cached)} a video, {told_bytes(self.cached * most)} for {most:,}, less where pairs share"
        )
        return [
            ("disk, cache", cache if self.cached else ""),
            ("disk, checkpoint", f"{told_bytes(state)}, and as much again while it is replaced"),
            ("disk, result", told_bytes(4 * self.training.trained)),
            ("disk, log", f"about {told_bytes(LOG_LINE * self.iterations)}"),
        ]


def of_stage(stage: Stage) -> Budget:
    """The plan of a stage that was opened: sizes from its cache, widths from its base, ranks from its experts."""
    settings, config, cache = stage.settings, stage.components.config, stage.data.cache
    needed = "experts" if stage.experts and settings.reference == "initial-gate" else "backbone"
    training = Training(
        config,
        {address: len(rows.scale) for address, rows in stage.experts.rows.items()}
        if stage.experts
        else uniform_ranks(config, settings.rank, audio=settings.audio_linears),
        gate=gate_numbers(config, settings) if stage.experts else 0,
        reference=needed if stage.objective.needs_reference else "none",
        form=settings.form,
        checkpointing=settings.checkpointing != "none",
        dtype=stage.components.dtype,
        kept=kept_share(settings, len(stage.data)),
        offload=settings.offload == "blocks",
        shards=stage.world.size if stage.world.sharded else 1,
    )
    units = Counter((grid_of(config, cache.size(unit.videos[0])), len(unit.videos)) for unit in stage.data.units)
    looks = -(-settings.iterations // settings.held_out_every) if stage.held_out else 0
    return Budget(
        training, units, sum(len(unit.pairs) for unit in stage.data.units), settings.batch, settings.iterations,
        looks=looks, held_out=sum(len(unit.videos) for unit in stage.held_out.units) if looks else 0,
        gpus=stage.world.size,
    )  # fmt: skip


def kept_share(settings, units: int) -> float:
    """Of the reference's passes those whose errors are kept: all visits but the first to each of a unit's noises."""
    visits = settings.batch * settings.iterations
    return max(0.0, 1 - units * settings.reference_draws / visits) if settings.reference_errors == "cached" else 0.0


def grid_of(config: WanConfig, latents: tuple[int, ...]) -> Grid:
    """Tokens of latents (F, h, w)."""
    time, down, across = (size // patch for size, patch in zip(latents, config.patch_size, strict=True))
    return time, down, across


def gate_numbers(config: WanConfig, settings) -> int:
    """How many numbers a gate with these settings has: W and b of every place it decides at."""
    places = 1 if settings.granularity == "expert" else config.num_layers
    places *= len(ORDER) if settings.granularity == "module" else 1
    reads_time = settings.timestep and settings.gate_form == "softmax"
    return places * len(settings.expert) * ((config.dim if reads_time else 1) + 1)
