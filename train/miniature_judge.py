"""The miniature's exact judge as a scorer of video files: what Talking-Critic is to people's videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core import media
from fantasy_core.critic.critic import Score
from fantasy_core.errors import UserError
from fantasy_core.miniature.judge import judge
from fantasy_core.miniature.render import SIZE
from fantasy_core.miniature.world import Clip
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_candidates import draw_inputs
from train.scorers import Video

# The judge says Yes above these; below 25 dB something is wrong with the whole picture.
CENTRE = {"mn": 0.55, "ls": 0.55, "vq": 25.0}
SPREAD = {"mn": 0.2, "ls": 0.2, "vq": 3.0}  # z is the distance in these units
VERSION = "1"


def read_frames(job: tuple[Path, Video]) -> tuple[str, Tensor]:
    """(input, frames [T, 3, S, S]) of a file."""
    path, video = job
    frames = torch.stack([frame for _, frame in media.read_video(path)])
    if frames.shape[2:] != (SIZE, SIZE) or not video.input.isdigit():
        raise UserError(
            f"{path} is not of the miniature's world",
            got=f"{frames.shape[3]} x {frames.shape[2]} pixels, input {video.input!r}",
            expected=f"{SIZE} x {SIZE}, and a number as input",
            do="score it with a critic (--base)",
        )
    return video.input, frames


@lru_cache(maxsize=64)
def drawn(number: str, frames: int) -> Clip:
    """The input that a number stands for, with its truth."""
    return draw_inputs(1, frames, int(number))[0]


class MiniatureJudge:
    """Knows whom a video shows and what was said: `input` is the number of a clip of the training seeds."""

    critic, views = f"miniature judge {VERSION}", "all frames"
    read, prepare, given = staticmethod(read_frames), None, ()

    def scores(self, clips: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[int, Score]]:
        for number, (name, frames) in enumerate(clips):
            truth = drawn(name, len(frames))
            told = judge(frames[None], truth.identity[None], truth.mouth[None])
            z = {d: (float(told[d]) - CENTRE[d]) / SPREAD[d] for d in DIMENSIONS}
            yield number, Score(z, z, 1.0, 1)

    def canary(self, clip: tuple[str, Tensor]) -> dict[str, float]:
        """Lip sync of a clip's mouth with its own voice and half a second late."""
        (_, own), (_, late) = *self.scores([clip]), *self.scores([(clip[0], clip[1].roll(12, 0))])
        return {"own": own.z["ls"], "late": late.z["ls"]}
