"""A video's frames at a glance: `python -m fantasy_core.sheet VIDEO --out SHEET.png`. Not in the paper.

Several videos take turns, row by row, so that the same moments of each stand one above the other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .errors import UserError, report, some
from .media import contact_sheet, read_video

SMALLEST_SIDE = 96  # pixels: the miniature's 64 are hard to see


def spread(length: int, count: int) -> list[int]:
    """`count` indices from the first to the last of `length` frames, evenly spaced, each once: 9, 3 -> 0, 4, 8."""
    if count == 1 or length == 1:
        return [0]
    return sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})


def pick(path: str, count: int) -> Tensor:
    """`count` evenly spread frames of a video, [count, 3, H, W] in [0, 1]; two passes, so memory holds only those."""
    wanted = set(spread(sum(1 for _ in read_video(path)), count))
    return torch.stack([frame for i, (_, frame) in enumerate(read_video(path)) if i in wanted])


def enlarge(frames: Tensor) -> Tensor:
    """Small frames, [T, 3, H, W], by a whole factor and without smoothing, so that every pixel stays what it is."""
    factor = -(-SMALLEST_SIDE // min(frames.shape[-2:]))
    return functional.interpolate(frames, scale_factor=factor, mode="nearest") if factor > 1 else frames


def filled(row: Tensor, columns: int) -> Tensor:
    """A row of a sheet, white where frames are missing."""
    return functional.pad(row, (0, 0, 0, 0, 0, 0, 0, columns - len(row)), value=1.0)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="python -m fantasy_core.sheet", description=__doc__)
    flags.add_argument("videos", nargs="+", help="video files of one size")
    flags.add_argument("--out", required=True, help="the picture to write (.png)")
    flags.add_argument("--frames", type=int, default=24, help="how many frames (24)")
    flags.add_argument("--columns", type=int, default=8, help="frames in a row (8)")
    flags.add_argument("--debug", action="store_true", help="show tracebacks")
    return flags


def make(args: argparse.Namespace) -> None:
    """Write the sheet that `args` describe. Raises UserError for an unreadable video or a count below one."""
    for name in ("frames", "columns"):
        if getattr(args, name) < 1:
            got = f"--{name} {getattr(args, name)}"
            raise UserError("nothing to show", got=got, expected="1 or more", do=f"leave --{name} out")
    shown = [enlarge(pick(video, args.frames)) for video in args.videos]
    if len({frames.shape for frames in shown}) > 1:
        raise UserError(
            "these videos do not fit on one sheet",
            got=some(
                f"{v}: {len(f)} frames of {f.shape[3]} x {f.shape[2]}" for v, f in zip(args.videos, shown, strict=True)
            ),
            expected="one size, and as many frames in each",
            do="make a sheet of each, or scale the videos to one size",
        )
    turns = zip(*(frames.split(args.columns) for frames in shown), strict=True)
    rows = [filled(row, args.columns) for turn in turns for row in turn]
    contact_sheet(torch.cat(rows), args.out, columns=args.columns)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    args = parser().parse_args(argv)
    return report(lambda: make(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
