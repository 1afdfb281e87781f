"""Pairs a second from four candidates of one input: pair by pair, and sharing each video's pass in both forms.

    python tests/benchmarks/bench_preference.py [--rounds 5]

Rank-32 experts on a small WanDiT, six pairs, one draw; the ways take turns in one process, the median counts. Also the
bytes that autograd keeps at its peak, all graphs of a pair at once against one video at a time.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import combinations
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small_dits import inputs, random_dit  # noqa: E402
from small_experts import random_bank  # noqa: E402
from test_preference import saved_bytes  # noqa: E402

from fantasy_core.fusion import attach  # noqa: E402
from fantasy_core.preference import Objective, accumulate_gradient, video_error  # noqa: E402
from fantasy_core.wan import WanConfig  # noqa: E402

CONFIG = WanConfig(256, 512, 2, 6, 36, 16, 16, 64, 6, (1, 2, 2), 0, 0, 0, 1e-6)
PAIRS, SIZE = list(combinations(range(4), 2)), (9, 16, 16)


class Setting:
    """Four candidates, the experts' parameters, and errors of the policy."""

    def __init__(self):
        self.dit = random_dit(CONFIG).requires_grad_(False)
        self.bank = random_bank(self.dit, ranks=(32,), names=("mn",)).requires_grad_()
        self.parameters = list(self.bank.parameters())
        shared = inputs(CONFIG, batch=1, size=SIZE)
        shared["timestep"] = torch.tensor([600.0])
        self.videos = [{**shared, "latents": torch.randn(1, 16, *SIZE)} for _ in range(4)]
        self.objective, self.reference = Objective(beta=10.0), torch.rand(4) + 1

    def gate(self, t_emb, timestep):
        return torch.ones(len(timestep), CONFIG.num_layers, 1, 1)

    def error(self, video: int) -> torch.Tensor:
        told = self.videos[video]
        return video_error(self.dit(**told), torch.zeros_like(told["latents"]))[0]

    def pairwise(self) -> None:
        for pair in PAIRS:
            told = {"form": "buffers", "weight": 1 / len(PAIRS)}
            accumulate_gradient(self.error, [pair], self.parameters, self.objective, self.reference, **told)

    def group(self, form: str) -> None:
        accumulate_gradient(self.error, PAIRS, self.parameters, self.objective, self.reference, form=form)

    def joint(self) -> None:
        errors = torch.stack([self.error(0), self.error(1)])
        loss, _ = self.objective(errors[:1], errors[1:], self.reference[:1], self.reference[1:2])
        loss.backward()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    setting = Setting()
    setting.gate.__func__.names, setting.gate.__func__.num_blocks = ("mn",), CONFIG.num_layers
    ways = {
        "pair by pair": setting.pairwise,
        "group, buffers": lambda: setting.group("buffers"),
        "group, pre-pass": lambda: setting.group("prepass"),
    }
    seconds = {name: [] for name in ways}
    with attach(setting.dit, setting.bank, setting.gate, "stacked"):
        setting.pairwise()
        for _ in range(args.rounds):
            for name, run in ways.items():
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
        both = saved_bytes(setting.joint)
        one = saved_bytes(lambda: accumulate_gradient(
            setting.error, [(0, 1)], setting.parameters, setting.objective, setting.reference))  # fmt: skip
    base = median(seconds["pair by pair"])
    print("| way | pairs a second | to pair by pair | gradient buffers |\n|---|---|---|---|")
    for name, buffers in zip(ways, (2, 4, 1), strict=True):
        took = median(seconds[name])
        print(f"| {name} | {len(PAIRS) / took:.2f} | {base / took:.2f} | {buffers} |")
    print(f"\nkept for backward, one video at a time / both at once: {one / both:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
