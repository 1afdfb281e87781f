"""Three questions on one reading of a clip against one question: processor seconds on one thread, interleaved in one
process.

    python tests/benchmarks/bench_critic.py --rounds 7

A random Thinker of 6 layers, 1024 wide, with small encoders (a real one, whose share of the work is larger, is read
once too), on 5 s of the shared view: 1280 tokens of video, 125 of sound, questions of about 75.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.shown import RATE, Shown
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_thinker import thinker, tokenizer


def clip(seconds: float = 5.0, side: int = 448) -> Shown:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (round(2 * seconds), 3, side, side), dtype=np.uint8))
    return Shown(frames, 2.0, rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=7)
    flags.add_argument("--hidden", type=int, default=1024)
    flags.add_argument("--layers", type=int, default=6)
    args = flags.parse_args()
    torch.set_num_threads(1)
    model = thinker(hidden=args.hidden, layers=args.layers, encoder=64)
    critic, shown = Critic(model, tokenizer(), read_views("shared"), read_questions()), clip()
    ways = {
        "one question": lambda: critic.ask([shown], ["ls"]),
        "three on one reading": lambda: critic.ask([shown], DIMENSIONS),
        "three readings": lambda: [critic.ask([shown], [dimension]) for dimension in DIMENSIONS],
    }
    tokens = critic.front.batch([shown], ["ls"])["input_ids"].shape[1]
    print(f"{shown.tokens} tokens of media, {tokens} with system and question")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            if number:  # the first round warms up
                times[name].append(time.process_time() - begun)
    ratios = {name: [b / a for a, b in zip(times["one question"], times[name], strict=True)] for name in ways}
    for name, taken in times.items():
        print(f"{name}: {statistics.median(taken):.3f} s, {statistics.median(ratios[name]):.3f} of one question")


if __name__ == "__main__":
    main()
