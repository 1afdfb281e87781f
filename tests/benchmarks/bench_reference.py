"""The step of an expert with the reference's errors computed every time, and read from where they are kept.

    python tests/benchmarks/bench_reference.py [--rounds 5]

One pair an iteration through the trainer's own code: a rank-32 expert on a WanDiT of 6 blocks, d = 256, 576 tokens;
what is kept lies in files. The ways take turns in one process, the median counts. With block recomputation a step runs
each block once more, so that the reference is a smaller part of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small_dits import random_dit  # noqa: E402
from small_experts import random_bank  # noqa: E402

from fantasy_core.fusion import attach  # noqa: E402
from fantasy_core.gate import Beside  # noqa: E402
from fantasy_core.preference import Objective  # noqa: E402
from fantasy_core.wan import WanConfig  # noqa: E402
from train.distributed import World  # noqa: E402
from train.errors import Draws, Errors, Row  # noqa: E402
from train.gradient import gradient  # noqa: E402
from train.reference import KeptReference, LiveReference  # noqa: E402
from train.shards import Cache, ShardWriter  # noqa: E402
from train.trainer import Switch  # noqa: E402

CONFIG = WanConfig(256, 512, 2, 6, 36, 16, 16, 64, 6, (1, 2, 2), 0, 64, 64, 1e-6)
SIZE = (9, 16, 16)
PAIRS = 4


def write_cache(folder: Path) -> Cache:
    """Random videos, two an input."""
    writer = ShardWriter(folder, {"weights": "random"})
    for number in range(2 * PAIRS):
        latents, audio = torch.randn(16, *SIZE), torch.randn(SIZE[0], 5, 64)
        told = {"latents": latents, "image": torch.randn(16, *SIZE), "text": torch.zeros(1, 16)}
        writer.add(str(number), told | {"audio": audio, "lengths": torch.full((SIZE[0],), 5)}, {"sha256": str(number)})
    writer.finish()
    return Cache(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    dit = random_dit(CONFIG).requires_grad_(False)
    bank = random_bank(dit, ranks=(32,), names=("mn",)).requires_grad_()
    switch = Switch(Beside(None, {"mn": 1.0}, CONFIG.num_layers), bank.names, CONFIG.num_layers)
    draws, objective = Draws(0, "logit-normal", 1.0, fixed=1), Objective()
    print("| blocks | reference | ms a pair | live / kept |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, attach(dit, bank, switch, "stacked"):
        cache = write_cache(Path(folder))
        ways = {"live": LiveReference(switch.off), "kept": KeptReference(switch.off, cache, {"weights": "random"})}

        def step(pair: int, way: str) -> float:
            rows = [Row(name, cache[name], draws(pair, str(pair))) for name in (str(2 * pair), str(2 * pair + 1))]
            begin = time.perf_counter()
            units = [Errors(dit, rows, [(0, 1)], False)]
            gradient("buffers", units, 1, list(bank.parameters()), objective, ways[way], World(torch.device("cpu")))
            return time.perf_counter() - begin

        for recomputed in (False, True):
            dit.checkpointing = recomputed
            for pair in range(PAIRS):
                step(pair, "kept")
            taken = {way: [] for way in ways}
            for turn in range(args.rounds * PAIRS):
                for way in ways:
                    taken[way].append(step(turn % PAIRS, way))
            live, kept = (median(taken[way]) * 1e3 for way in ways)
            told = "recomputed" if recomputed else "kept in memory"
            print(f"| {told} | live | {live:.0f} | |\n| {told} | kept | {kept:.0f} | {live / kept:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
