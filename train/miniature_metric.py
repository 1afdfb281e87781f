"""The miniature's exact judge as a metric: Table 3 in miniature by the command that measures real videos.

It reads in a video's metadata which held-out clip it answers (train.miniature --stage videos writes it there), looks up
whom that shows and what was said, and scores by the very function of the miniature's own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fantasy_core.manifest import settings_of
from fantasy_core.metrics.contract import Measured, Unfit, Video
from fantasy_core.miniature.render import SIZE
from fantasy_core.miniature.world import FPS, Clip
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_evaluate import SPLITS, held_out, score
from train.miniature_judge import VERSION


class Judge:
    """Lip sync, motion and quality of a video of the miniature's world, against its truth."""

    name = "judge"
    columns = ("ls", "mn", "vq")
    better: Mapping[str, int] = dict.fromkeys(columns, 1)
    settings: Mapping[str, object] = {"judge": f"miniature, version {VERSION}", "size": SIZE, "fps": FPS}
    verified = True

    def measure(self, video: Video) -> Measured:
        """Raises Unfit for a video that is none of the miniature's, or not at its rate and size any more."""
        clip = drawn(*truth_of(video.path), len(video.frames))
        found = score(pictures_of(video)[None], [clip])
        return Measured({dimension: float(found[dimension]) for dimension in DIMENSIONS})


@lru_cache(maxsize=64)
def drawn(split: str, number: int, frames: int) -> Clip:
    return held_out(split, 1, frames, number)[0]


def truth_of(path: Path) -> tuple[str, int]:
    """(split, number of the clip) of a video. Raises Unfit for one that does not say it."""
    told: Any = (settings_of(path) or {}).get("miniature")
    split, number = (told.get("split"), told.get("clip")) if isinstance(told, dict) else (None, None)
    if split not in SPLITS or type(number) is not int or number < 0:
        raise _foreign(path, f"metadata {told!r}", "videos of train.miniature --stage videos, whose metadata says so")
    return split, number


def pictures_of(video: Video) -> torch.Tensor:
    """[T, 3, S, S] in 0..1: the mean of the pixels that one was enlarged to."""
    height, width = video.frames.shape[1:3]
    if height != width or height % SIZE or abs(video.fps - FPS) > 0.05 or len(video.frames) < 3:
        got = f"{len(video.frames)} frames at {video.fps:.2f} fps, {width}x{height}"
        raise _foreign(video.path, got, f"{FPS:g} fps, squares of {SIZE} px or a multiple (no --fps, no --size)")
    frames = torch.from_numpy(video.frames).movedim(-1, 1).float() / 255
    return torch.nn.functional.avg_pool2d(frames, height // SIZE)


def _foreign(path: Path, got: str, expected: str) -> Unfit:
    do = "measure other videos with other metrics"
    return Unfit(f"{path} is no video of the miniature", got=got, expected=expected, do=do)
