"""The DiT of Wan2.1-I2V-14B with FantasyTalking's audio, random weights: seconds a step and peak memory on a GPU.

    python tests/benchmarks/bench_dit_14b.py [--frames 81] [--size 832x480] [--passes 2] [--cards 24,40,all]

A card is a share of the GPU set by torch.cuda.set_per_process_memory_fraction; the blocks are offloaded there. `all`
is the whole GPU with every weight on it. A step is `--passes` passes in a row: equal guidance scales need two. Needs
36 GiB of host memory. `--preset miniature --size 64x64 --frames 17 --device cpu` tries the script out anywhere.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import nullcontext
from statistics import median

import torch
from random_dit import AUDIO_ROWS, random_dit, random_inputs

from fantasy_core import offload
from fantasy_core.estimate import estimate
from fantasy_core.wan import WanDiT

GIB = 2**30
HEADER = "| card | blocks | s a step, min | median | PFLOP/s | peak allocated | reserved | estimated |"


def limit_memory(card: str, device: torch.device) -> None:
    """Let this process have as much memory as the card: GiB, or `all`."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if card == "all" else min(1.0, float(card) * GIB / total)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, device)
        torch.cuda.reset_peak_memory_stats(device)


def seconds(dit: WanDiT, given: dict, passes: int, repeat: int) -> list[float]:
    """Of `repeat` steps, after one that is not counted. All but the first pass of a step are without audio."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        for index in range(passes):
            out = dit(**given, audio_scale=1.0 if index == 0 else 0.0)
        assert math.isfinite(out.sum().item())  # also waits for the device
        times.append(time.perf_counter() - start)
    return times[1:]


def row(dit: WanDiT, card: str, flags: argparse.Namespace, given: dict) -> str:
    """Measure one card."""
    device = torch.device(flags.device)
    streamed = card != "all"
    limit_memory(card, device)
    width, height = map(int, flags.size.split("x"))
    dtype = getattr(torch, flags.dtype)
    plan = estimate(dit.config, flags.frames, height, width, 1, flags.passes, dtype, streamed)
    context = offload.blocks(dit, device) if streamed else nullcontext(dit.to(device))
    label = f"| {card if card == 'all' else card + ' GiB'} | {'offloaded' if streamed else 'resident'} |"
    try:
        with context:
            times = seconds(dit, given, flags.passes, flags.repeat)
    except torch.OutOfMemoryError:
        return f"{label} out of memory | | | | | {plan.sampling / GIB:.1f} GiB |"
    stats = (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    peaks = [f"{peak(device) / GIB:.1f} GiB" if device.type == "cuda" else "-" for peak in stats]
    rate = plan.flops / median(times) / 1e15
    measured = f"{min(times):.2f} | {median(times):.2f} | {rate:.3g} | {' | '.join(peaks)}"
    return f"{label} {measured} | {plan.sampling / GIB:.1f} GiB |"


@torch.no_grad()
def main() -> None:
    """Print the table, row by row: offloaded cards first, because the blocks begin in host memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wan2.1-i2v-14b")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", default="832x480", help="width x height in pixels")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--cards", default="24,40,all", help="GiB or `all`, with commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args()
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here")
    dit = random_dit(flags.preset, getattr(torch, flags.dtype))
    width, height = map(int, flags.size.split("x"))
    given = random_inputs(dit.config, flags.frames, height, width, AUDIO_ROWS, flags.device)
    name = torch.cuda.get_device_name() if flags.device == "cuda" else "CPU"
    print(f"{flags.preset}, {flags.frames} frames of {flags.size}, {flags.passes} passes, {flags.dtype}, {name}\n")
    print(f"{HEADER}\n|{'---|' * (HEADER.count('|') - 1)}", flush=True)
    for card in sorted(flags.cards.split(","), key=lambda card: card == "all"):
        print(row(dit, card, flags, given), flush=True)


if __name__ == "__main__":
    main()
