"""How fast raw footage becomes clips: seconds of footage a second, by where the time goes, on one core.

    python tests/benchmarks/bench_clips.py --task face_landmarker.task [--seconds 10] [--size 832x480]

A speaking portrait stands in a grey picture, so every rule is passed and every stage is paid for; then the same picture
without a face, where the search in windows costs most.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from talking import FPS, openings, portrait, speaking, voice, write_footage  # noqa: E402

from fantasy_core.lips import landmarker  # noqa: E402
from fantasy_core.media import parse_size, read_video  # noqa: E402
from fantasy_core.media.cuts import differences  # noqa: E402
from train.clip_file import ClipRules, Outcome, choose, heard, make_clips  # noqa: E402
from train.footage import Footage  # noqa: E402

RULES = ClipRules(23.0, 81, 49, None, 0.1, 0.2, 80.0, 0.5, 2, "keep", "scene")


def timed(name: str, seconds: float, work) -> float:
    """Run and print a stage's time and speed; its time."""
    begun = time.perf_counter()
    work()
    taken = time.perf_counter() - begun
    print(f"{name:38}{taken:8.2f} s{seconds / taken:8.2f} x real time")
    return taken


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", default="832x480")
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    width, height = parse_size(flags.size)
    sound, count = voice(flags.seconds), round(flags.seconds * FPS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        frames = torch.full((count, 3, height, width), 0.5)
        write_footage(folder / "nobody.mp4", frames, sound)
        frames[:, :, :224, :224] = speaking(portrait(), openings(sound, count))
        path = write_footage(folder / "talk.mp4", frames, sound)
        del frames
        timed("decoding and differences", flags.seconds, lambda: differences(read_video(path)))
        timed("sound", flags.seconds, lambda: heard(path))
        with landmarker(flags.task) as detect, landmarker(flags.task, confidence=0.9) as strict:
            for name in ("talk", "nobody"):
                outcome = Outcome("k", name, "0" * 64)
                work = partial(choose, folder / f"{name}.mp4", RULES, (detect, strict), outcome)
                timed(f"all rules, {name}", flags.seconds, work)
        outcome, footage = Outcome("k", "talk", "0" * 64), Footage(path, "talk.mp4")
        work = partial(make_clips, footage, outcome, out=folder, rules=RULES, task=flags.task)
        timed("all with writing, talk", flags.seconds, work)
        print(f"{len(outcome.clips)} clips of {width} x {height}, offsets {[row['offset'] for row in outcome.clips]}")


if __name__ == "__main__":
    main()
