"""What the miniature's judge costs: processor milliseconds for a frame, by the number of frames fitted at once.

    python tests/benchmarks/bench_judge.py [--frames 81] [--pieces 9 27 81] [--repeat 5]

One thread. The lengths take turns; a figure is the least of the rounds. To compare two versions, run the one script
with `PYTHONPATH` set to each in turn.
"""

from __future__ import annotations

import argparse
import time

import torch

from fantasy_core.miniature.judge import fit_in_pieces
from fantasy_core.miniature.world import draw_clip


def measure(video: torch.Tensor, identity: torch.Tensor, frames: int) -> float:
    """Processor milliseconds for a frame of video [1, T, 3, S, S]."""
    start = time.process_time()
    fit_in_pieces(video, identity, frames)
    return (time.process_time() - start) * 1e3 / video.shape[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--pieces", type=int, nargs="+", default=[9, 27, 81])
    parser.add_argument("--repeat", type=int, default=5)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    clip = draw_clip(100, 0, flags.frames)
    video, identity = clip.video()[None], clip.identity[None]
    rounds = [[measure(video, identity, frames) for frames in flags.pieces] for _ in range(flags.repeat)]
    print("| frames at once | ms a frame |\n|---|---|")
    for frames, times in zip(flags.pieces, zip(*rounds, strict=True), strict=True):
        print(f"| {frames} | {min(times):.1f} |")


if __name__ == "__main__":
    main()
