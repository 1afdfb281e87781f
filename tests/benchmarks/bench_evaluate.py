"""How long an evaluation of 200 clips takes when it was done before: everything comes from the cache.

    python tests/benchmarks/bench_evaluate.py [--clips 200] [--frames 81] [--size 256]

Writes two methods and a reference of so many clips in all to a temporary folder (drawn noise, so that files have the
size of real ones), measures brightness and a distance of sets once, and then again as a command of its own, from the
start of Python to its end; also after one clip was changed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fantasy_core.media import VideoWriter  # noqa: E402


def write_clip(path: Path, seed: int, frames: int, size: int) -> None:
    """Soft noise that moves."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    picture = F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, Fraction(25)) as writer:
        for k in range(frames):
            writer.write(picture.roll(k, 3))


def timed(command: list[str]) -> float:
    begun = time.monotonic()
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    subprocess.run(command, check=True, env=os.environ | paths, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each, names = args.clips // 4, ("base", "ours", "theirs", "real")
        for place, of in enumerate(names):
            for k in range(each):
                write_clip(folder / of / f"{k:03d}.mp4", 1000 * place + k, args.frames, args.size)
        command = [sys.executable, "-m", "train.evaluate", "--out", str(folder / "out"), "--workers", "2", "--method"]
        command += [f"{of}={folder / of}" for of in names[:3]] + ["--reference", str(folder / "real")]
        command += ["--metrics", "plain_metrics:Brightness", "plain_metrics:Colours"]
        print(f"{args.clips} clips of {args.frames} frames, {args.size} px: first {timed(command):.1f} s")
        again = sorted(timed(command) for _ in range(3))
        print(f"again: {again[1]:.1f} s (the median of three)")
        write_clip(folder / "ours" / "000.mp4", 77, args.frames, args.size)
        print(f"after one clip was changed: {timed(command):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
