"""Training on preference pairs, for experts and for the gate alike: data, the loop, checkpoints.

Every random thing is drawn by a key (`train.errors`), so a run that is resumed repeats an uninterrupted one bit for
bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.errors import UserError, some
from fantasy_core.flow import draw_noise
from fantasy_core.pair_rules import Pair
from fantasy_core.preference import Objective
from fantasy_core.progress import Progress
from train.checkpoint import Checkpoint, Log
from train.distributed import World
from train.dropout import Dropout
from train.errors import Draw, Draws, Errors, Row
from train.gradient import gradient
from train.meter import Meter
from train.pair_checks import check_masks, check_pairs
from train.shards import Cache, Encoded
from train.tables import rows_of

ORDER = 1  # what a draw is for, beside those of train.errors
UNITS = ("pair", "input")


@dataclass(frozen=True)
class Unit:
    """What shares one draw: a pair, or all pairs of an input. `pairs` index into `videos`."""

    input: str
    videos: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


class PairData:
    """Pairs of one split, and their videos from the cache. Checks on entry that all of it is there and fits."""

    def __init__(
        self,
        pairs: Path,
        cache: Cache,
        *,
        unit: str = "pair",
        masked: bool = False,
        split: str = "train",
        dropout: Dropout | None = None,
        dimension: str | None = None,
    ):
        rows = [pair for pair in rows_of(pairs, Pair) if pair.split == split]
        if not rows:
            raise UserError(
                f"{pairs} holds nothing to train on",
                got=f"no pairs of split {split!r}",
                expected="at least one",
                do="make pairs of training videos with train.pairs",
            )
        self.cache, self.masked, self.dropout = cache, masked, dropout or Dropout()
        self.dropout.check(cache)
        if masked:
            rows = _with_lips(rows, cache)
        needed = cache.conditions + (("lips",) if masked else ())
        cache.need({name for pair in rows for name in (pair.chosen, pair.rejected)}, *needed)
        check_pairs(pairs, rows, cache, dimension)
        if masked:
            check_masks(list(dict.fromkeys(name for pair in rows for name in (pair.chosen, pair.rejected))), cache)
        groups: dict[object, list[Pair]] = {}
        for number, pair in enumerate(rows):
            groups.setdefault(pair.input if unit == "input" else number, []).append(pair)
        self.units = [_unit(group) for group in groups.values()]
        self._check_sizes()

    def __len__(self) -> int:
        return len(self.units)

    def at(self, index: int, seed: int) -> Unit:
        """Unit `index` of an endless stream: every epoch in an order of its own."""
        epoch, place = divmod(index, len(self.units))
        return self.units[_order(len(self.units), seed, epoch)[place]]

    def read(self, unit: Unit, seed: int, index: int) -> list[Encoded]:
        """The videos of a unit that is `index` of the stream, less what is dropped there."""
        return self.dropout([self.cache[name] for name in unit.videos], self.cache, seed, index)

    def errors(self, dit, unit: Unit, draw: Draw, seed: int = 0, index: int = 0) -> Errors:
        """The unit's videos under a draw."""
        videos = zip(unit.videos, self.read(unit, seed, index), strict=True)
        return Errors(dit, [Row(name, encoded, draw) for name, encoded in videos], unit.pairs, self.masked)

    def check_one_size(self) -> None:
        """Raise UserError unless all videos can go through one pass."""
        sizes = {self.cache.size(video) for unit in self.units for video in unit.videos}
        if len(sizes) > 1:
            raise UserError(
                "videos of different sizes cannot share one pass",
                got="latents " + some(" x ".join(map(str, size)) for size in sizes),
                expected="one length, height and width",
                do="train with --form buffers, which takes one video at a time",
            )

    def _check_sizes(self) -> None:
        sizes = {video: self.cache.size(video) for unit in self.units for video in unit.videos}
        mixed = [unit for unit in self.units if len({sizes[video] for video in unit.videos}) > 1]
        if mixed:
            told = (f"{name} {' x '.join(map(str, sizes[name]))}" for name in mixed[0].videos)
            raise UserError(
                "some pairs have videos of different sizes, which cannot share one noise",
                got=f"{len(mixed)} of them: latents {some(told)}",
                expected="equal lengths, heights and widths of the videos of an input",
                do="cut and scale the videos to one size before train.cache",
            )


@lru_cache(maxsize=2)
def _order(units: int, seed: int, epoch: int) -> list[int]:
    return torch.argsort(draw_noise((units,), seed, ORDER, epoch)).tolist()


def _with_lips(rows: list[Pair], cache: Cache) -> list[Pair]:
    """Pairs less those with a video whose lips train.cache could not follow, which it has told; told here again."""
    lost = {name for name, entry in cache.videos.items() if entry.get("lips")}
    kept = [pair for pair in rows if not {pair.chosen, pair.rejected} & lost]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} pairs are left out: a video without a lip mask")
    if not kept:
        raise UserError(
            "no pair has lip masks of both videos",
            got=f"{len(rows)} pairs, each with a video whose lips could not be followed",
            expected="at least one pair with masks",
            do="give masks of your own to train.cache (--masks), or train without them (--masked false)",
        )
    return kept


def _unit(group: Sequence[Pair]) -> Unit:
    videos = tuple(dict.fromkeys(name for pair in group for name in (pair.chosen, pair.rejected)))
    pairs = tuple((videos.index(pair.chosen), videos.index(pair.rejected)) for pair in group)
    return Unit(group[0].input, videos, pairs)


class Switch:
    """A gate that can be turned off: off, the experts weigh nothing and the model is the reference."""

    def __init__(self, gate: Callable[[Tensor, Tensor], Tensor], names: tuple[str, ...], num_blocks: int):
        self.gate, self.names, self.num_blocks, self.on = gate, names, num_blocks, True

    def __call__(self, t_emb: Tensor, times: Tensor) -> Tensor:
        w = self.gate(t_emb, times)
        return w if self.on else torch.zeros_like(w).detach()

    @contextmanager
    def off(self):
        """The reference, whatever happens inside."""
        self.on = False
        try:
            yield
        finally:
            self.on = True


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know of a stage's settings."""

    iterations: int
    batch: int
    seed: int
    form: str
    clip_norm: float
    warmup: int
    final_lr: float
    save_every: int
    held_out_every: int

    def rate(self, iteration: int) -> float:
        """The share of the learning rate: up from 1 / warmup, then straight down to `final_lr` at the end."""
        rising = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        return rising * (1 - (1 - self.final_lr) * iteration / self.iterations)


def train(
    plan: Plan,
    data: PairData,
    draws: Draws,
    dit,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    reference: Callable[..., list[Tensor]],
    checkpoint: Checkpoint,
    out: Path,
    world: World,
    *,
    held_out: Callable[..., dict] | None = None,
    statistics: Callable[[], dict] = dict,
    watch: Callable[[dict], None] | None = None,
    samples: Callable[..., None] | None = None,
    track: Callable[[int, dict], None] | None = None,
) -> None:
    """Optimise `parameters` on the pairs, from the checkpoint on. `reference` knows the reference's errors. A line for
    every iteration goes to log.jsonl, with `statistics()` and every `held_out_every` iterations (and at the end) the
    held-out pairs; `watch` and `track` read along, `samples` is called with the number of iterations that are done. A
    loss that is no number, and a file that cannot be written, stop the run, and the last checkpoint stays. Of several
    processes each takes its share of the batch.
    """
    first = checkpoint.load(parameters, optimizer)
    world.agree(checkpoint.hash, first)
    with checkpoint.kept():
        log = Log(out / "log.jsonl", first) if world.is_main else None
    meter, rates = Meter(dit), [group["lr"] for group in optimizer.param_groups]
    with Progress("training", plan.iterations, shown=world.is_main) as progress:
        progress.done = first
        for iteration in range(first, plan.iterations):
            if samples:
                samples(dit, iteration)
            meter.begin()
            optimizer.zero_grad(set_to_none=True)
            indices = world.share(iteration, plan.batch)
            units = [data.at(index, plan.seed) for index in indices]
            drawn = [draws(index, unit.input) for index, unit in zip(indices, units, strict=True)]
            errors = (data.errors(dit, u, d, plan.seed, n) for n, u, d in zip(indices, units, drawn, strict=True))
            lines = gradient(plan.form, errors, plan.batch, parameters, objective, reference, world)
            world.sum_gradients(parameters)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm or math.inf))
            line = world.mean(lines, plan.batch) | {"grad_norm": norm}
            check_finite(line, iteration, checkpoint)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * plan.rate(iteration)
            optimizer.step()
            measured, last = meter.read(), iteration + 1 == plan.iterations
            line |= statistics()
            if held_out and plan.held_out_every and ((iteration + 1) % plan.held_out_every == 0 or last):
                line |= held_out(dit, objective)
            line["measured"] = measured
            if log is None:
                continue
            if watch:
                watch(line)
            if track:
                track(iteration, line)
            with checkpoint.kept():
                log.write(iteration, line)
                if (iteration + 1) % plan.save_every == 0 or last:
                    checkpoint.save(iteration + 1, parameters, optimizer)
            progress.step(f"loss {line['loss']:.4f}, accuracy {line['accuracy']:.2f}")
    if samples:
        samples(dit, plan.iterations, last=True)


def check_finite(line: dict, iteration: int, checkpoint: Checkpoint) -> None:
    """Raise UserError for a loss or a gradient that is no number."""
    if not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
        raise UserError(
            "the training went astray",
            got=f"loss {line['loss']}, gradient norm {line['grad_norm']} in iteration {iteration}",
            expected="finite numbers",
            do="train into a new --out with a lower learning rate or beta: other settings are another run, the same "
            f"ones would go the same way; {checkpoint.last}",
        )
