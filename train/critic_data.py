"""What a critic learns from: labelled videos, balanced, in an endless order that a seed fixes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from fantasy_core.errors import UserError, some
from fantasy_core.flow import draw_noise
from fantasy_core.media import check_file
from train.annotations import Annotation, read_annotations
from train.balance import balance
from train.scorers import read_videos
from train.splits import held_out

ORDER = 1  # what a draw is for, as in train.trainer


class CriticData:
    """Labels of the train split with their files; a share of the inputs is held out for validation.

    Balanced: as many Yes as No in every (dimension, source), or the critic would learn to tell real from generated.
    Raises UserError for labels of videos that are not there, and for too few of them.
    """

    def __init__(self, annotations: Path, videos: Path, *, seed: int, validation: float, dimensions: Sequence[str]):
        rows = [r for r in read_annotations(annotations) if r.split == "train" and r.dimension in dimensions]
        known = [row for row in rows if row.label is not None]
        self.files = {video.video: videos.parent / video.path for video in read_videos(videos)}
        strangers = {row.video for row in known} - self.files.keys()
        if strangers:
            raise UserError(
                f"{annotations} has labels of videos that {videos} does not have",
                got=some(strangers),
                expected="a line in videos.jsonl for each",
                do="give the videos.jsonl that was labelled",
            )
        for video in {row.video for row in known}:
            check_file(self.files[video], f"video {video}")
        self.known, self.seed, self.share, self.named = known, seed, validation, annotations
        self._balance()

    def leave_out(self, labels: Collection[tuple[str, str]]) -> None:
        """Do without the labels of these (video, dimension), and balance the others anew."""
        self.known = [row for row in self.known if (row.video, row.dimension) not in labels]
        self._balance()

    def _balance(self) -> None:
        self.validation = held = [row for row in self.known if held_out(row.input, self.share)]
        self.rows, self.dropped = balance([row for row in self.known if not held_out(row.input, self.share)], self.seed)
        if not self.rows:
            raise UserError(
                f"{self.named} holds nothing to learn from",
                got=f"{len(self.known)} labels for training, {len(held)} of them held out, none in a balanced cell",
                expected="Yes and No labels in at least one (dimension, source)",
                do="label more videos (train.annotate), or lower --validation",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: int) -> Annotation:
        """Label `index` of an endless stream: every epoch in an order of its own."""
        epoch, place = divmod(index, len(self.rows))
        return self.rows[_order(len(self.rows), self.seed, epoch)[place]]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    return torch.argsort(draw_noise((count,), seed, ORDER, epoch)).tolist()
