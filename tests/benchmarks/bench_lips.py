"""What lip masks cost: 81 frames of 512 x 512, from pictures to latent masks.

    taskset -c 0 python tests/benchmarks/bench_lips.py --task face_landmarker.task [--frames 81] [--repeat 3]

skimage's astronaut, moved by a pixel a frame. The detector is opened once, outside the time; the least of `--repeat`
runs counts, and each stage by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from fantasy_core.lips import landmarker, project, track  # noqa: E402


def least(repeat: int, work):
    """(least seconds, result)."""
    best, result = float("inf"), None
    for _ in range(repeat):
        begun = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - begun)
    return best, result


def main() -> None:
    """Print the table."""
    from skimage import data

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    picture = data.astronaut()
    frames = [np.roll(picture, n % 40, axis=1) for n in range(flags.frames)]
    with landmarker(flags.task) as detect, landmarker(flags.task, confidence=0.9) as strict:
        detect(picture)
        alone, _ = least(flags.repeat, lambda: [detect(frame) for frame in frames])
        tracking, found = least(flags.repeat, lambda: track(frames, detect, strict))
    drawing, masks = least(flags.repeat, lambda: found.masks(*picture.shape[:2]))
    projecting, latent = least(flags.repeat, lambda: project(masks))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    seen = f"face seen in {found.seen.mean():.0%}"
    print(f"{flags.frames} frames of 512 x 512, {cores} core(s), {seen}, latent masks {list(latent.shape)}")
    print("| stage | seconds |\n|---|---|")
    print(f"| landmarks of whole frames alone, for comparison | {alone:.2f} |")
    print(f"| following the face (windows, landmarks) | {tracking:.2f} |")
    print(f"| masks | {drawing:.2f} |\n| projection | {projecting:.3f} |")
    print(f"| **together** | **{tracking + drawing + projecting:.2f}** |")


if __name__ == "__main__":
    main()
