"""What the critic costs before it runs: a few videos are read, its sizes are counted, and the rest is arithmetic.

A token passes the language model's linears, a patch of 14 x 14 pixels (or 20 ms of sound) those of its encoder: 2 FLOPs
for each of their weights; attention is left out, which is little for a few thousand tokens. Training passes the
language model's again for the gradient of its input, and once more where blocks are computed again; the encoders stay
as they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from fantasy_core.critic.asked import Views
from fantasy_core.critic.files import face_finder, show_file
from fantasy_core.critic.shown import Shown
from fantasy_core.critic.sizes import Sizes, sizes_of
from fantasy_core.errors import UserError
from fantasy_core.estimate import PLANNING_RATES, told_bytes, told_flops, told_seconds
from train.critic_data import CriticData

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
    """A few lines: the model's memory, what was looked at, and the hours of `count` videos that are to be scored."""
    asked = {view.name: sum(one.name == view.name for one in views.of.values()) for view in views.of.values()}
    work = [
        sum(flops(sizes, window, asked[name]) for name, of_view in windows.items() for window in of_view)
        for windows in looked.shown
    ]
    reading = told_seconds(looked.seconds * count / max(readers, 1))
    by = f"{readers} workers" if readers else "this process"
    return (
        f"{_memory(sizes, dtype)}\n{looked}\n"
        f"{count:,} videos to score: {_hours(_mean(work, count))}; reading takes {by} {reading}"
    )


class Planned(Protocol):
    """What `training_plan` reads of the settings of a training."""

    base: Path
    task: Path | None
    dimension: tuple[str, ...]
    rank: int
    epochs: float
    checkpointing: bool


def training_plan(settings: Planned, data: CriticData, views: Views, dtype: torch.dtype) -> str:
    """The same of a training on the balanced labels of `data`: of each the first window, in its dimension's view."""
    views, sizes = views.only(settings.dimension), sizes_of(settings.base)
    files = [data.files[name] for name in dict.fromkeys(row.video for row in data.rows)]
    looked = look(files, views, settings.task if views.crops_face else None)
    passes, works = 3 if settings.checkpointing else 2, []
    for dimension, labels in Counter(row.dimension for row in data.rows).items():
        name = views.of[dimension].name
        first = [flops(sizes, windows[name][0], 1, passes) for windows in looked.shown if windows[name]]
        works.append(_mean(first, settings.epochs * labels))
    total = None if None in works else sum(work for work in works if work is not None)
    adapter = told_bytes(16 * settings.rank * sizes.linears)  # weights, gradient and two moments, in fp32
    return (
        f"{_memory(sizes, dtype)}, the adapter with its gradient and AdamW's moments "
        f"{adapter}; activations of --micro tokens besides\n{looked}\n{_hours(total)}"
    )


def _mean(work: Sequence[float], count: float) -> float | None:
    """Of `count` such, None where there is none to go by."""
    return sum(work) / len(work) * count if work else None


def _hours(total: float | None) -> str:
    if total is None:
        return "FLOPs unknown, for none of the videos that were looked at could be shown"
    told = ", ".join(f"{name} {told_seconds(total / rate)}" for name, rate in PLANNING_RATES.items())
    return f"{told_flops(total)}, on one GPU {told} (assumed rates)"


def _memory(sizes: Sizes, dtype: torch.dtype) -> str:
    return (
        f"the model: {sizes.total / 1e9:.2f} billion weights ({sizes.language / 1e9:.2f} in the language model), "
        f"{told_bytes(sizes.total * dtype.itemsize)} in {str(dtype).removeprefix('torch.')}"
    )
