"""What the critic costs before it runs: a few videos are read, its sizes are counted, and the rest is arithmetic.

A token passes the language model's linears, a patch of 14 x 14 pixels (or 20 ms of sound) those of its encoder: 2 FLOPs
for each of their weights; attention is left out, which is little for a few thousand tokens. Training passes the
language model's again for the gradient of its input, and once more where blocks are computed again; the encoders stay
as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fantasy_core.critic.asked import Views
from fantasy_core.critic.files import face_finder, show_file
from fantasy_core.critic.shown import Shown
from fantasy_core.critic.sizes import Sizes
from fantasy_core.errors import UserError
from fantasy_core.estimate import PLANNING_RATES, told_bytes, told_flops, told_seconds

LOOKED_AT = 8  # videos
QUESTION = 110  # tokens of a question (45 to 65 words) with what is around it
SOUND_RATE = 50  # places of the audio encoder in a second


def flops(sizes: Sizes, window: Shown, questions: int, passes: int = 1) -> float:
    """Of a window with its questions; `passes` of the language model: 1 to score, 2 to train, 3 with checkpointing."""
    patches, heard = window.grid[0] * window.grid[1] * window.grid[2], SOUND_RATE * window.seconds
    encoders = 2 * (sizes.vision * patches + sizes.audio * heard)
    return encoders + 2 * sizes.language * (window.tokens + QUESTION * questions) * passes


@dataclass(frozen=True)
class Looked:
    """What a few videos look like to the critic: windows by view, what could not be read, seconds to read one."""

    shown: list[Mapping[str, list[Shown]]]
    failed: list[UserError]
    seconds: float

    @property
    def faceless(self) -> int:
        return sum(not all(windows.values()) for windows in self.shown)

    def __str__(self) -> str:
        count = len(self.shown) + len(self.failed)
        tokens = sum(one.tokens for windows in self.shown for view in windows.values() for one in view)
        told = [f"looked at {count} videos, {self.seconds:.2g} s to read one"]
        told += [f"{tokens / len(self.shown):,.0f} tokens each"] if self.shown else []
        told += [f"{self.faceless} without a face: no lip sync"] if self.faceless else []
        told += [f"{len(self.failed)} failed: {self.failed[0].what} ({self.failed[0].got})"] if self.failed else []
        return "; ".join(told)


def look(files: Sequence[Path], views: Views, task: Path | None) -> Looked:
    """Read LOOKED_AT of the files, spread over the list."""
    chosen = [files[k * len(files) // min(LOOKED_AT, len(files))] for k in range(min(LOOKED_AT, len(files)))]
    shown, failed, began = [], [], time.perf_counter()

    def read(find_face=None) -> None:
        for path in chosen:
            try:
                shown.append(show_file(path, views, find_face))
            except UserError as error:
                failed.append(error)

    if views.crops_face:
        with face_finder(task) as find_face:
            read(find_face)
    else:
        read()
    return Looked(shown, failed, (time.perf_counter() - began) / max(len(chosen), 1))


def score_plan(looked: Looked, views: Views, sizes: Sizes, dtype: torch.dtype, count: int, readers: int) -> str:
    """A few lines: the model's memory, what was looked at, and the hours of `count` videos."""
    asked = {view.name: sum(one.name == view.name for one in views.of.values()) for view in views.of.values()}
    work = [
        flops(sizes, window, asked[name])
        for windows in looked.shown
        for name, of_view in windows.items()
        for window in of_view
    ]
    total = sum(work) / max(len(looked.shown), 1) * count
    reading = told_seconds(looked.seconds * count / max(readers, 1))
    return (
        f"{_memory(sizes, dtype)}\n{looked}\n"
        f"{count:,} videos: {told_flops(total)}, on one GPU {_times(total)}; reading takes {readers} workers {reading}"
    )


def train_plan(
    looked: Looked, views: Views, sizes: Sizes, dtype: torch.dtype, labels: Iterable[tuple[str, float]], adapter: int,
    again: bool,
) -> str:  # fmt: skip
    """The same of a training on (dimension, how many labels are learnt from in all); `adapter` has so many weights,
    `again`: blocks are computed again."""
    total = 0.0
    for dimension, count in labels:
        name = views.of[dimension].name
        first = [flops(sizes, windows[name][0], 1, 3 if again else 2) for windows in looked.shown if windows[name]]
        total += sum(first) / max(len(first), 1) * count
    return (
        f"{_memory(sizes, dtype)}, the adapter with its gradient and AdamW's moments {told_bytes(16 * adapter)}; "
        f"activations of --micro tokens besides\n{looked}\n{told_flops(total)}, on one GPU {_times(total)}"
    )


def _memory(sizes: Sizes, dtype: torch.dtype) -> str:
    return (
        f"the model: {sizes.total / 1e9:.2f} billion weights ({sizes.language / 1e9:.2f} in the language model), "
        f"{told_bytes(sizes.total * dtype.itemsize)} in {str(dtype).removeprefix('torch.')}"
    )


def _times(total: float) -> str:
    told = ", ".join(f"{name} {told_seconds(total / rate)}" for name, rate in PLANNING_RATES.items())
    return f"{told} (assumed rates)"
