"""A video's frames at a glance: `python -m fantasy_core.sheet VIDEO --out SHEET.png`. Not in the paper."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .errors import UserError, report
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


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="python -m fantasy_core.sheet", description=__doc__)
    flags.add_argument("video", help="a video file")
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
    contact_sheet(enlarge(pick(args.video, args.frames)), args.out, columns=args.columns)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    args = parser().parse_args(argv)
    return report(lambda: make(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
