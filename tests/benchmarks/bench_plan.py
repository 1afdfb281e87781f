"""How well one measured iteration predicts others: time of training against tokens, width and rank.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_plan.py [--rounds 7]

True iterations of one pair (`train.speed`), fp32. The shapes take turns, so that whatever else the machine does
falls on all of them. Seconds are the processor's own, not the clock's, and the fastest of the rounds counts: what
others do on the same cores can only add. Three predictions from the calibrated shape alone: by FLOPs; by the rates of
linears and attention, the rest left out; by all rates, as `train.plan --calibrate` predicts.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import astuple, dataclass, replace

import torch

from fantasy_core.wan import PRESETS
from train.cost import Grid, Rates, Training, Work, uniform_ranks
from train.speed import TrueIteration, measure

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    width: int = 512
    grid: Grid = (5, 12, 12)
    rank: int = 32
    gate: bool = False
    checkpointing: bool = False

    @property
    def training(self) -> Training:
        sizes = {"dim": self.width, "ffn_dim": 2 * self.width, "num_heads": self.width // 64, "num_layers": 2}
        config = replace(PRESETS["miniature"], **sizes)
        gate = 2 * (self.width + 1) if self.gate else 0
        how = {"gate": gate, "checkpointing": self.checkpointing, "dtype": torch.float32}
        return Training(config, uniform_ranks(config, self.rank), **how)


CALIBRATED = Shape()
OTHERS = (
    Shape(grid=(3, 8, 8)),
    Shape(grid=(5, 8, 8)),
    Shape(grid=(5, 20, 20)),
    Shape(width=256),
    Shape(width=768),
    Shape(width=1024),
    Shape(rank=8),
    Shape(rank=128),
    Shape(width=256, grid=(5, 8, 8), rank=128),
    Shape(width=1024, grid=(3, 8, 8), rank=8),
    Shape(checkpointing=True),
    Shape(gate=True),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    shapes = (CALIBRATED, *OTHERS)
    iterations = [TrueIteration(shape.training, shape.grid, 2, CPU) for shape in shapes]
    seconds = {shape: [] for shape in shapes}
    for number in range(args.rounds + 1):  # the first warms up
        for shape, iteration in zip(shapes, iterations, strict=True):
            began = time.process_time()
            iteration()
            seconds[shape] += [time.process_time() - began] if number else []
    best = {shape: min(taken) for shape, taken in seconds.items()}
    works = {shape: iteration.work for shape, iteration in zip(shapes, iterations, strict=True)}
    rates = measure(iterations[0], time.process_time)
    scale = rates.seconds(works[CALIBRATED]) / best[CALIBRATED]  # proportions count: all is from the same rounds
    report(best, works, Rates(*(rate * scale for rate in astuple(rates))))
    return 0


def report(best: dict[Shape, float], works: dict[Shape, Work], rates: Rates) -> None:
    one = works[CALIBRATED].flops / best[CALIBRATED]
    two = Rates(rates.linears, rates.attention)
    two_scale = best[CALIBRATED] / two.seconds(works[CALIBRATED])
    print(f"linears {rates.linears / 1e9:.1f} GFLOP/s, attention {rates.attention / 1e9:.1f} GFLOP/s, ", end="")
    print(f"the rest {rates.traffic / 1e9:.2f} GB/s, {1e3 / rates.passes:.2f} ms a block; calibrated on {CALIBRATED}\n")
    print("| width | tokens | rank | | seconds | by FLOPs | two rates | all rates |")
    print("|---|---|---|---|---|---|---|---|")
    worst = [0.0, 0.0, 0.0]
    for shape, took in best.items():
        work = works[shape]
        predicted = (work.flops / one, two.seconds(work) * two_scale, rates.seconds(work))
        off = [value / took - 1 for value in predicted]
        worst = [max(most, abs(value)) for most, value in zip(worst, off, strict=True)]
        kind = ", ".join(["gate"] * shape.gate + ["checkpointing"] * shape.checkpointing)
        told = " | ".join(f"{value:+.1%}" for value in off)
        print(f"| {shape.width} | {' x '.join(map(str, shape.grid))} | {shape.rank} | {kind} | {took:.3f} | {told} |")
    print("\nlargest error: " + ", ".join(f"{value:.1%}" for value in worst))


if __name__ == "__main__":
    raise SystemExit(main())
