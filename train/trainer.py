"""Training on preference pairs, for experts and for the gate alike: data, draws, the loop, checkpoints.

Every random thing is drawn from a generator of its own, keyed by the run's seed and by what it is for
(`flow.draw_noise`): nothing depends on what was drawn before, so a run that is resumed repeats an uninterrupted one bit
for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.audio import AudioTokens
from fantasy_core.errors import UserError, some
from fantasy_core.flow import draw_noise, shift_sigma, timestep, velocity_target, x_sigma
from fantasy_core.pair_rules import Pair
from fantasy_core.preference import Objective, accumulate_gradient, video_error
from fantasy_core.progress import Progress
from train.checkpoint import Checkpoint, Log
from train.run import read_rows
from train.shards import Cache, condition_of

ORDER, SIGMA, NOISE = 1, 2, 3  # what a draw is for
UNITS = ("pair", "input")


@dataclass(frozen=True)
class Unit:
    """What shares one draw: a pair, or all pairs of an input. `pairs` index into `videos`."""

    videos: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


class PairData:
    """Pairs of one split, and their videos from the cache. Checks on entry that all of it is there and fits."""

    def __init__(self, pairs: Path, cache: Cache, *, unit: str = "pair", masked: bool = False, split: str = "train"):
        rows = [pair for pair in read_rows(pairs, Pair) if pair.split == split]
        if not rows:
            raise UserError(
                f"{pairs} holds nothing to train on",
                got=f"no pairs of split {split!r}",
                expected="at least one",
                do="make pairs of training videos with train.pairs",
            )
        self.cache, self.masked = cache, masked
        if masked:
            rows = _with_lips(rows, cache)
        needed = ("latents", "image", "audio", "text") + (("lips",) if masked else ())
        cache.need({name for pair in rows for name in (pair.chosen, pair.rejected)}, *needed)
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
        order = torch.argsort(draw_noise((len(self.units),), seed, ORDER, epoch))
        return self.units[int(order[place])]

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
    return Unit(videos, tuple((videos.index(pair.chosen), videos.index(pair.rejected)) for pair in group))


def draw_sigma(seed: int, index: int, distribution: str, shift: float) -> float:
    """One noise level: logit-normal or uniform, then shifted."""
    return sigma_of(draw_noise((1,), seed, SIGMA, index, dtype=torch.float64), distribution, shift)


def sigma_of(normal: Tensor, distribution: str, shift: float) -> float:
    """The noise level that stands where `normal` stands among normal numbers."""
    sigma = normal.sigmoid() if distribution == "logit-normal" else torch.special.ndtr(normal)
    return float(shift_sigma(sigma, shift))


class Errors:
    """The policy's and the reference's errors of a unit's videos under one sigma and one noise."""

    def __init__(self, dit, data: PairData, unit: Unit, index: int, seed: int, sigma: float):
        self.dit, self.sigma, self.masked = dit, sigma, data.masked
        parameter = next(dit.parameters())
        self.device = parameter.device
        self.videos = [data.cache[name] for name in unit.videos]
        self.noise = draw_noise(self.videos[0]["latents"].shape, seed, NOISE, index)[None].to(self.device)

    def __call__(self, video: int) -> Tensor:
        """The error of one video under the model as it is, a scalar."""
        own = {name: tensor[None].to(self.device) for name, tensor in self.videos[video].items()}
        latents = own["latents"].float()
        velocity = self.dit(
            x_sigma(latents, self.noise, self.sigma),
            torch.full((1,), timestep(self.sigma), device=self.device),
            own["text"],
            condition=condition_of(self.videos[video])[None].to(self.device),
            clip=own.get("clip"),
            audio=AudioTokens(own["audio"], own.get("lengths")),
        )
        target = velocity_target(latents, self.noise)
        return video_error(velocity, target, own["lips"].float() if self.masked else None)[0]

    def all(self) -> Tensor:
        """Errors [V] without gradients."""
        with torch.no_grad():
            return torch.stack([self(video) for video in range(len(self.videos))])


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
    distribution: str
    shift: float
    form: str
    clip_norm: float
    save_every: int
    held_out_every: int


def train(
    plan: Plan,
    data: PairData,
    dit,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    reference: Callable[[], object],
    checkpoint: Checkpoint,
    out: Path,
    *,
    held_out: Callable[..., dict] | None = None,
    statistics: Callable[[], dict] = dict,
    watch: Callable[[dict], None] | None = None,
) -> None:
    """Optimise `parameters` on the pairs, from the checkpoint on. `reference()` is a context in which the model is the
    reference. A line for every iteration goes to log.jsonl, with `statistics()` and every `held_out_every` iterations
    (and at the end) the held-out pairs; `watch` reads along. A loss that is no number stops the run, and the last
    checkpoint stays.
    """
    first = checkpoint.load(parameters, optimizer)
    log = Log(out / "log.jsonl", first)
    with Progress("training", plan.iterations) as progress:
        progress.done = first
        for iteration in range(first, plan.iterations):
            began, lines = time.monotonic(), []
            optimizer.zero_grad(set_to_none=True)
            for index in range(iteration * plan.batch, (iteration + 1) * plan.batch):
                sigma = draw_sigma(plan.seed, index, plan.distribution, plan.shift)
                unit = data.at(index, plan.seed)
                errors = Errors(dit, data, unit, index, plan.seed, sigma)
                known = None
                if objective.needs_reference:
                    with reference():
                        known = errors.all()
                loss, told, _ = accumulate_gradient(
                    errors, unit.pairs, parameters, objective, known, form=plan.form, weight=1 / plan.batch
                )
                lines.append({"loss": loss, "sigma": sigma, **told})
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm or math.inf))
            line = {key: sum(one[key] for one in lines) / len(lines) for key in lines[0]} | {"grad_norm": norm}
            _check_finite(line, iteration, checkpoint)
            optimizer.step()
            seconds, last = time.monotonic() - began, iteration + 1 == plan.iterations
            line |= statistics()
            if held_out and plan.held_out_every and ((iteration + 1) % plan.held_out_every == 0 or last):
                line |= held_out(dit, objective, reference)
            log.write(iteration, line, seconds)
            if watch:
                watch(line)
            if (iteration + 1) % plan.save_every == 0 or last:
                checkpoint.save(iteration + 1, parameters, optimizer)
            progress.step(f"loss {line['loss']:.4f}, accuracy {line['accuracy']:.2f}")


def _check_finite(line: dict, iteration: int, checkpoint: Checkpoint) -> None:
    if not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
        raise UserError(
            "the training went astray",
            got=f"loss {line['loss']}, gradient norm {line['grad_norm']} in iteration {iteration}",
            expected="finite numbers",
            do=f"lower the learning rate or beta; {checkpoint.file.parent} holds the last good state"
            if checkpoint.file.is_file()
            else "lower the learning rate or beta; no checkpoint had been written yet",
        )
