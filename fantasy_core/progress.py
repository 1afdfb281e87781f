"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere, both with the time that is left."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """`total` steps of the work called `name`. A context manager; call `step` after each. Not `shown`, it is silent."""

    def __init__(self, name: str, total: int, shown: bool = True):
        self.name, self.total, self.done, self.shown = name, total, 0, shown
        self.begun = self.told = time.monotonic()
        self.bar = tqdm(total=total, desc=name, unit="step") if shown and sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, note: str = "") -> None:
        """One step is done; `note` says where in the work it was."""
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update()
            return
        now = time.monotonic()
        if self.shown and (self.done in (1, self.total) or now - self.told >= SECONDS_BETWEEN_LINES):
            self.told = now
            left = (now - self.begun) / self.done * (self.total - self.done)
            note = f", {note}" if note else ""
            line = f"{self.name}: step {self.done}/{self.total}{note}, {tqdm.format_interval(left)} left"
            print(line, file=sys.stderr, flush=True)
