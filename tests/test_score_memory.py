"""Batches that do not fit into the memory of a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fantasy_core.critic.asked import read_views
from fantasy_core.critic.critic import Answer
from fantasy_core.critic.shown import Shown
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS
from train.scorers import CriticScorer


class Small:
    """A model on a device that holds `room` windows at once; z is a window's mean. It remembers its batches."""

    hash, views, taught = "small", read_views("shared"), DIMENSIONS

    def __init__(self, room: int):
        self.room, self.batches = room, []

    def by_view(self, dimensions: Sequence[str]) -> dict[str, list[str]]:
        return {"shared": list(dimensions)}

    def ask(self, windows: Sequence[Shown], asked: Sequence[str]) -> list[Answer]:
        self.batches.append(len(windows))
        if len(windows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")
        return [Answer(dict.fromkeys(asked, float(one.frames.float().mean())), 1.0) for one in windows]


def clip(number: int) -> dict[str, list[Shown]]:
    """2 frames of 56 x 56 at 2 a second: 1 pair x 4 x 4 patches / 4 + 25 of sound = 29 tokens."""
    frames = torch.full((2, 3, 56, 56), number, dtype=torch.uint8)
    return {"shared": [Shown(frames, 2.0, np.zeros(16000, np.float32))]}


def test_a_batch_that_does_not_fit_is_halved(capsys):
    """16 clips in batches of 8 (8 x 29 tokens), of which 2 fit. 8 fail, and 4 (116 tokens); the other batches are of 2
    at once: 58 tokens. Every clip has its own score."""
    model = Small(2)
    scorer = CriticScorer(model, 8 * 29)
    found = dict(scorer.scores([clip(number) for number in range(16)]))
    assert {number: score.z["mn"] for number, score in found.items()} == {n: float(n) for n in range(16)}
    assert model.batches == [8, 4] + [2] * 8 and scorer.batch == 58
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "with 232 tokens" in told[0] and "--batch 116" in told[0] and "--batch 58" in told[1]
    assert "GPU 0" not in told[0]
    model.batches.clear()
    assert len(dict(scorer.scores([clip(0), clip(1), clip(2)]))) == 3 and model.batches == [2, 1]


def test_one_window_that_does_not_fit_is_an_error():
    with pytest.raises(UserError, match="too small for one window") as told:
        list(CriticScorer(Small(0), 100).scores([clip(0), clip(1), clip(2)]))
    assert "Tried to allocate 2 GiB" in told.value.got
    with pytest.raises(UserError, match="too small for one window"):
        CriticScorer(Small(0), 100).canary(clip(0))
