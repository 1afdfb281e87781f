"""Units without their text or their voice, now and then, so that guidance keeps something to guide away from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fantasy_core.errors import UserError
from fantasy_core.flow import draw_noise
from train.shards import Cache, Encoded

DROPOUT = 7  # what the draw is for, beside those of errors.py, trainer.py, expert.py and samples.py


@dataclass(frozen=True)
class Dropout:
    """With probability `text` a unit has the empty prompt instead of its own, with probability `audio` no voice: all
    its videos alike, for policy and reference. Not in the paper."""

    text: float = 0.0
    audio: float = 0.0

    def check(self, cache: Cache) -> None:
        """Raise UserError for a cache without the empty prompt, where it is needed."""
        if self.text and cache.empty_prompt is None:
            raise UserError(
                f"{cache.folder} does not hold the empty prompt",
                got=f"text dropout {self.text}",
                expected="the empty prompt, encoded as the others are",
                do="run train.cache on this folder again, which adds it, or leave out --text-dropout",
            )

    def __call__(self, videos: list[Encoded], cache: Cache, seed: int, index: int) -> list[Encoded]:
        """The videos of unit `index` as they are trained on."""
        drawn = torch.special.ndtr(draw_noise((2,), seed, DROPOUT, index)).tolist()  # uniform in 0..1
        if drawn[0] < self.text and cache.empty_prompt is not None:
            videos = [held | {"text": cache.empty_prompt} for held in videos]
        if drawn[1] < self.audio:
            videos = [{n: t for n, t in held.items() if n not in ("audio", "lengths")} for held in videos]
        return videos
