"""Work for other processes, in a module that they can import: it dies, refuses a job, stays, or cannot begin."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from fantasy_core.errors import UserError
from train.scorers import Video


def die_over(job: Path) -> str:
    """The text of a file; dies over `deadly`, as a broken decoder does, and refuses `wrong`."""
    text = job.read_text()
    if text == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "wrong":
        raise UserError("a wrong text", got=text, expected="another", do="write another")
    return text


def tell_and_stay(job: Path) -> None:
    """Write this process's number into a file, and stay."""
    job.write_text(str(os.getpid()))
    time.sleep(600)


def slow_first(job: int) -> int:
    time.sleep(1.0 if job == 0 else 0.0)
    return job


def cannot_begin(error: Exception) -> None:
    raise error


def die_over_pair(job: tuple[Path, str]) -> str:
    return die_over(job[0])


def die_over_big(job: tuple[Path, Video]) -> str:
    """The id of a job of train.score; dies over `big`, as the system kills where memory is short."""
    if job[1].video == "big":
        os.kill(os.getpid(), signal.SIGKILL)
    return job[1].video
