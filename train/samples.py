"""Videos that the policy makes while it is trained, always of the same inputs and noise, so that they compare.

OUT/samples/iteration_000100_VIDEO.mp4 (silent: the cache does not hold the voice's sound) and iteration_000100.png, for
each video a row of the chosen video itself, as the VAE gives it back, and a row of what the policy makes of its first
frame and its voice. Nothing of training changes by it: the noise has a seed of its own, and no gradients are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fantasy_core.audio import AudioTokens
from fantasy_core.components import Components
from fantasy_core.flow import draw_noise, guided, sample, schedule
from fantasy_core.media import VideoWriter, contact_sheet
from fantasy_core.pair_rules import Pair
from fantasy_core.sheet import enlarge, spread
from train.distributed import World
from train.shards import Cache, condition_of
from train.tables import rows_of

SAMPLE_SEED, SAMPLE = 0, 6  # the same noise in every run; what the draw is for
COLUMNS = 8  # frames of a video on the sheet


class SampleSettings(Protocol):
    """What `Samples` reads of a stage's settings."""

    out: Path
    pairs: Path
    sample_every: int
    sample_count: int
    sample_steps: int | None
    sample_scale: float | None


class Samples:
    """Called with the number of iterations that are done; makes its videos when they are due. Steps and the scale of
    the guidance are the model's defaults unless given. Raises UserError for a cache without the videos."""

    def __init__(self, settings: SampleSettings, cache: Cache, components: Components, world: World):
        self.world = world
        self.every, self.folder = settings.sample_every, settings.out / "samples"
        self.cache, self.components = cache, components
        defaults, scale = components.defaults, settings.sample_scale
        self.sigmas = schedule(settings.sample_steps or defaults.steps, defaults.shift)
        self.hears = components.config.audio_token_dim > 0
        own = defaults.audio_scale if self.hears else defaults.text_scale
        self.scale = own if scale is None else scale
        self.videos = inputs_of(settings.pairs, settings.sample_count)
        cache.need({*self.videos}, *cache.conditions)

    def __call__(self, dit, done: int, *, last: bool = False) -> None:
        """Before the first iteration, after every `sample_every` of them, and after the last."""
        if (done % self.every == 0 or last) and (self.world.is_main or self.world.sharded):
            latents = [self.latents(dit, number) for number in range(len(self.videos))]
            if self.world.is_main:  # where blocks are sharded, all processes make the passes
                self.folder.mkdir(parents=True, exist_ok=True)
                self.write(latents, f"iteration_{done:06d}")

    @torch.no_grad()
    def write(self, latents: list[Tensor], name: str) -> None:
        rows = []
        for number, video in enumerate(self.videos):
            file = self.folder / f"{name}_{video.replace('/', '_')}.mp4"
            made = written(self.frames(latents[number]), file, self.cache.facts["fps"])
            rows += [spread_of(chunks, self.length(number)) for chunks in (self.frames(self.chosen(number)), made)]
        contact_sheet(enlarge(grid(rows)), self.folder / f"{name}.png", columns=COLUMNS)

    @torch.no_grad()
    def latents(self, dit, number: int) -> Tensor:
        """What the policy makes of video `number`'s image, text and voice: [1, 16, F, h, w]. It is guided by the voice,
        and where there is none by the prompt, away from the empty one."""
        device, held = self.components.device, self.cache[self.videos[number]]
        own = {name: tensor[None].to(device) for name, tensor in held.items()}
        noise = draw_noise(own["latents"].shape, SAMPLE_SEED, SAMPLE, number).to(device)
        heard = AudioTokens(own["audio"], own.get("lengths")) if self.hears else None
        empty, condition = None if self.hears else self.cache.empty_prompt, condition_of(held)
        velocity = guided(
            dit, own["text"], heard, negative=None if empty is None else empty[None].to(device),
            condition=None if condition is None else condition[None].to(device), clip=own.get("clip"),
            text_scale=self.scale, audio_scale=self.scale,
        )  # fmt: skip
        return sample(velocity, noise, self.sigmas)

    def chosen(self, number: int) -> Tensor:
        """The chosen video's own latents [1, 16, F, h, w]."""
        return self.cache[self.videos[number]]["latents"][None].to(self.components.device).float()

    def length(self, number: int) -> int:
        return 1 + 4 * (self.cache.size(self.videos[number])[0] - 1)

    def frames(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents [1, 16, F, h, w] as frames [t, 3, H, W] in 0..1, a few at a time."""
        return (chunk / 2 + 0.5 for chunk in self.components.decode(latents))


def written(chunks: Iterable[Tensor], file: Path, fps: float) -> Iterator[Tensor]:
    """The same chunks, written to a file as they pass."""
    with VideoWriter(file, fps) as writer:
        for chunk in chunks:
            writer.write(chunk)
            yield chunk


def spread_of(chunks: Iterable[Tensor], length: int) -> Tensor:
    """COLUMNS frames of a video of that length, evenly spread."""
    wanted, frames = spread(length, COLUMNS), (frame for chunk in chunks for frame in chunk)
    return torch.stack([frame.float().cpu() for number, frame in enumerate(frames) if number in wanted])


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of frames [n, 3, H, W], n up to COLUMNS, as frames of one size, on white."""
    height, width = (max(row.shape[axis] for row in rows) for axis in (2, 3))
    frames = torch.ones(len(rows), COLUMNS, 3, height, width)
    for place, row in zip(frames, rows, strict=True):
        place[: len(row), :, : row.shape[2], : row.shape[3]] = row
    return frames.flatten(0, 1)


def inputs_of(pairs: Path, count: int) -> list[str]:
    """A chosen video of each of the first inputs of split `validation` or, where there are none, of `train`."""
    rows, found = list(rows_of(pairs, Pair)), {}
    for split in ("validation", "train"):
        for pair in rows:
            if pair.split == split:
                found.setdefault(pair.input, pair.chosen)
        if found:
            break
    return list(found.values())[:count]
