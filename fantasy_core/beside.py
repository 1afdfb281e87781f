"""Videos side by side, to compare: `python -m fantasy_core.beside ONE TWO ... --out ALL.mp4`. Not in the paper.

They have one frame rate and one height; the sound is the first's, the length the shortest's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from .errors import UserError, report, some
from .media import VideoWriter, read_video


def rate_and_height(path: str) -> tuple[float, int]:
    """Frames a second, by the first two, and pixels."""
    times, frames = zip(*islice(read_video(path), 2), strict=True)
    return (round(1 / (times[1] - times[0]), 3) if len(times) > 1 else 25.0), frames[0].shape[1]


def sounds(path: str) -> bool:
    """Whether there is anything to hear."""
    import av

    with av.open(path) as container:
        return bool(container.streams.audio)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="python -m fantasy_core.beside", description=__doc__)
    flags.add_argument("videos", nargs="+", help="video files, from left to right")
    flags.add_argument("--out", required=True, type=Path, help="the video to write (.mp4)")
    flags.add_argument("--debug", action="store_true", help="show tracebacks")
    return flags


def make(args: argparse.Namespace) -> None:
    """Write the video that `args` describe. Raises UserError for videos that do not go together."""
    told = {path: rate_and_height(path) for path in args.videos}
    if len(set(told.values())) > 1:
        raise UserError(
            "these videos cannot stand side by side",
            got=some(
                f"{path}: {rate:g} frames a second, {height} pixels high" for path, (rate, height) in told.items()
            ),
            expected="one frame rate and one height",
            do="convert them (ffmpeg -i IN -r RATE -vf scale=-2:HEIGHT OUT)",
        )
    (rate, _), first = told[args.videos[0]], args.videos[0]
    with VideoWriter(args.out, rate, sound=first if sounds(first) else None) as writer:
        for frames in zip(*(read_video(path) for path in args.videos), strict=False):
            writer.write(torch.cat([frame for _, frame in frames], 2)[None])


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    args = parser().parse_args(argv)
    return report(lambda: make(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
