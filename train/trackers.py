"""The log of a run in the trackers that people look at, through accelerate's classes: tensorboard, wandb, trackio.

Nothing goes online unless the user's environment says so: tensorboard and trackio write files on this machine, wandb
runs offline (`wandb sync` sends it later) unless WANDB_MODE is set.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "fantasytalking2"


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise UserError for a tracker that is not installed."""
    for package in (*names, "accelerate") if names else ():
        if importlib.util.find_spec(package) is None:
            raise UserError(
                "a tracker cannot be used",
                got=f"no package {package} in this Python",
                expected=f"{package}, installed",
                do=f"pip install {package}, or leave it out of --tracker; log.jsonl is written in any case",
            )


def scalars(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a line of the log by name; those of a table or a list as table/key and list/0, list/1 ..."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            value = {str(number): one for number, one in enumerate(value)}
        found |= scalars(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


class Trackers:
    """A context that takes the lines of a run. They are opened with the first line; a run that goes on continues the
    step axis, and a line that it repeats after a kill is the same line. `run` (a hash) tells runs apart, `config` is
    shown beside the curves where a tracker can."""

    def __init__(self, names: tuple[str, ...], out: Path, run: str, config: dict[str, Any]):
        self.names, self.out, self.run, self.config = names, out, run, config
        self.open: list[Any] = []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_) -> None:
        for tracker in self.open:
            tracker.finish()

    def __call__(self, iteration: int, line: dict[str, Any]) -> None:
        if self.names and not self.open:
            self.open = [self._start(name, iteration) for name in self.names]
        for tracker in self.open:
            tracker.log(scalars(line), step=iteration)

    def _start(self, name: str, first: int):
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        PartialState()  # without it accelerate's own logging refuses to work
        if name == "tensorboard":  # steps of an earlier part of this run from `first` on are dropped
            tracker = TensorBoardTracker(name, self.out, purge_step=first)
            tracker.start()
            return tracker
        same = {"name": f"{self.out.name}-{self.run[:8]}", "resume": "allow"}
        if name == "wandb":
            os.environ.setdefault("WANDB_MODE", "offline")  # given to init alone, its telemetry would still call home
            tracker = WandBTracker(PROJECT, dir=str(self.out), id=self.run[:16], **same)
        else:
            tracker = TrackioTracker(PROJECT, **same)
        tracker.start()
        told = {key: v if isinstance(v, bool | int | float | None) else str(v) for key, v in self.config.items()}
        tracker.store_init_configuration(told)
        return tracker
