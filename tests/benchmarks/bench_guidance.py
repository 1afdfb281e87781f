"""Three passes of guidance against two: seconds of one guided velocity, and their ratio, interleaved in one process.

    python tests/benchmarks/bench_guidance.py [--preset miniature] [--frames 17] [--size 64x64] [--device cpu]

At equal text and audio scales (FantasyTalking's default) the pass without audio has the coefficient zero and is not
run. Every round times each variant once; a ratio is the median over rounds of variant to three passes in that round.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from random_dit import AUDIO_ROWS, random_dit, random_inputs

from fantasy_core.flow import guided

VARIANTS = {  # text scale, audio scale, how the passes run
    "three passes (5, 4.5)": (5.0, 4.5, "sequential"),
    "three passes in a batch": (5.0, 4.5, "batched"),
    "two passes (5, 5)": (5.0, 5.0, "sequential"),
    "two passes in a batch": (5.0, 5.0, "batched"),
    "one pass (1, 1)": (1.0, 1.0, "sequential"),
}


def measure(velocity, latents: torch.Tensor) -> float:
    """Seconds of one guided velocity, the device waited for."""
    start = time.perf_counter()
    velocity(latents, 0.7).sum().item()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="miniature")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", default="64x64", help="width x height in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeat", type=int, default=11)
    flags = parser.parse_args()
    dit = random_dit(flags.preset, getattr(torch, flags.dtype)).to(flags.device)
    width, height = map(int, flags.size.split("x"))
    given = random_inputs(dit.config, flags.frames, height, width, AUDIO_ROWS, flags.device)
    latents, text = given.pop("latents"), given.pop("text")
    velocities = {
        name: guided(
            dit, text, given["audio"], negative=text + 0.1, condition=given.get("condition"), clip=given.get("clip"),
            text_scale=text_scale, audio_scale=audio_scale, passes=passes,
        )
        for name, (text_scale, audio_scale, passes) in VARIANTS.items()
    }  # fmt: skip
    rounds = [{name: measure(f, latents) for name, f in velocities.items()} for _ in range(flags.repeat + 1)][1:]
    print("| variant | min ms | median ms | ratio |\n|---|---|---|---|")
    for name in VARIANTS:
        times = [one[name] for one in rounds]
        ratio = median(one[name] / one["three passes (5, 4.5)"] for one in rounds)
        print(f"| {name} | {min(times) * 1e3:.1f} | {median(times) * 1e3:.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
