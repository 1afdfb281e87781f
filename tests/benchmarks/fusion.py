"""Experts and their gate against the base model: base, peft with three active adapters, naive, stacked, merged, auto.

    python tests/benchmarks/fusion.py [--preset small|14b] [--device cpu|cuda] [--rounds 9]

All run interleaved in one process on the same weights: single linears from N*/4 to 8 N* tokens, one block, a whole
model. A ratio is the median over rounds of a variant's time to the base's in the same round; in brackets that of the
fastest times. `small` is the 14B at a tenth of its width, tokens and rank (single linears: a fifth), so the ratios of
FLOPs are its own; `14b` has its true shapes and one of its 40 blocks unless `--layers 40`; `tiny` tries the script out.
On a CPU time is processor time of one thread, which other programs disturb little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from gated_models import GatedModels, linear_variants, random_bank, random_rows
from random_dit import random_dit, random_inputs
from torch import Tensor, nn

from fantasy_core.estimate import token_grid
from fantasy_core.fusion import Tokens, build_plan
from fantasy_core.fusion.plan import break_even
from fantasy_core.fusion.strategies import merge
from fantasy_core.wan import PRESETS, WanConfig

PARTS = (1 / 4, 1 / 2, 1, 2, 4, 8)  # of N*
ORDER = ("base", "peft", "naive", "stacked", "merged", "auto")
Variants = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    """Sizes of a preset: model, rank of an expert, video; rows of CLIP, and of audio for a latent frame; single linears
    (in, out) and the rank there."""

    config: WanConfig
    rank: int
    frames: int
    height: int
    width: int
    clip: int
    audio: int
    linears: tuple[tuple[int, int], ...]
    linear_rank: int


SMALL = WanConfig(512, 1376, 4, 2, 36, 16, 64, 64, 51, (1, 2, 2), 128, 78, 205, 1e-6)
BIG = replace(PRESETS["wan2.1-i2v-14b"], num_layers=1)
CASES = {
    "tiny": Case(PRESETS["tiny"], 3, 9, 32, 48, 26, 2, ((64, 64), (64, 170)), 5),
    "small": Case(SMALL, 13, 81, 192, 208, 26, 2, ((1024, 1024), (1024, 2765), (2765, 1024)), 26),
    "14b": Case(BIG, 128, 81, 480, 832, 257, 17, ((5120, 5120), (5120, 13824), (13824, 5120)), 128),
}


@dataclass(frozen=True)
class Timing:
    """Seconds of every round, by variant."""

    seconds: dict[str, list[float]]

    def ratio(self, name: str) -> float:
        return median(a / b for a, b in zip(self.seconds[name], self.seconds["base"], strict=True))

    def least(self, name: str) -> float:
        return min(self.seconds[name]) / min(self.seconds["base"])

    def cell(self, name: str) -> str:
        return f"{self.ratio(name):.3f} ({self.least(name):.3f})"

    def merged_wins(self) -> bool:
        return self.ratio("merged") <= 1.10 and self.ratio("merged") < min(self.ratio("stacked"), self.ratio("peft"))


def interleave(variants: Variants, rounds: int, device: str) -> Timing:
    """Run every variant once a round; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + rounds):
        for name, run in variants.items():
            seconds[name].append(clocked(run, device))
    return Timing({name: times[1:] for name, times in seconds.items()})


def clocked(run: Callable[[], Tensor], device: str) -> float:
    """Seconds of one run, the device waited for; on a CPU seconds of the processor."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait(device)
    start = clock()
    run()
    wait(device)
    return clock() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(run: Callable[[], Tensor], device: str) -> str:
    """GiB allocated at most during a run, weights included."""
    if device != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    run()
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"


def difference(run: Callable[[], Tensor], reference: Tensor) -> float:
    return ((run().float() - reference).abs().max() / reference.abs().max()).item()


def table(*rows: tuple[str, ...]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def linear_table(case: Case, flags: argparse.Namespace, dtype: torch.dtype) -> dict[str, Timing]:
    """Print the sweep over tokens; returns the timings from 2 N* tokens up."""
    rows, timings = [("linear", "tokens", "base ms", *ORDER[1:])], {}
    for sizes in case.linears:
        linear = nn.Linear(*sizes, device=flags.device, dtype=dtype).requires_grad_(False)
        experts, limit = random_rows(*sizes, case.linear_rank, linear.weight), break_even(*sizes)
        for part in PARTS:
            x = torch.randn(round(part * limit), sizes[0], device=flags.device, dtype=dtype)
            timing = interleave(linear_variants(linear, experts, x), flags.rounds, flags.device)
            label, base = "{} x {}".format(*sizes), f"{median(timing.seconds['base']) * 1e3:.3g}"
            rows.append((label, f"{len(x)} = {part:g} N*", base, *(timing.cell(name) for name in ORDER[1:])))
            if part >= 2:
                timings[f"linear {label}, {part:g} N*"] = timing
    print(f"\n### One linear, R = {3 * case.linear_rank}\n\n{table(*rows)}", flush=True)
    return timings


def model_table(title: str, variants: Variants, flags: argparse.Namespace) -> Timing:
    """Print one row for each variant, and how far its output is from that of `naive`."""
    timing = interleave(variants, flags.rounds, flags.device)
    reference = variants["naive"]().float()
    rows = [("variant", "ms, median", "ms, min", "ratio", "max difference from naive", "peak memory")]
    for name, run in variants.items():
        times = timing.seconds[name]
        size, memory = f"{difference(run, reference):.1e}", peak(run, flags.device)
        rows.append((name, f"{median(times) * 1e3:.4g}", f"{min(times) * 1e3:.4g}", timing.cell(name), size, memory))
    print(f"\n### {title}\n\n{table(*rows)}", flush=True)
    return timing


def merging(models: GatedModels, plan, flags: argparse.Namespace) -> float:
    """Milliseconds to merge the weights of the first block that the plan merges, the fastest of the rounds."""
    chosen = [name for name, linear in plan.linears.items() if linear.choice.strategy == "merged"]
    bank, linears = models.bank.rows, dict(models.dit.named_modules())
    work = [(linears[name].weight, bank[name], torch.ones_like(bank[name].scale))
            for name in chosen if name.startswith("blocks.0.")]  # fmt: skip

    def run() -> Tensor:
        out = torch.empty(0)
        for weight, rows, c in work:
            out = merge(weight, rows, c)
        return out

    return min(clocked(run, flags.device) for _ in range(1 + flags.rounds)) * 1e3


def criteria(timings: dict[str, Timing], block: Timing, merge_ms: float, device: str) -> str:
    """The aims, what was measured, and whether that is enough."""
    rows = [("aim", "measured", "met")]
    for name, timing in {**timings, "block": block}.items():
        three = ", ".join(f"{which} {timing.ratio(which):.3f}" for which in ("merged", "stacked", "peft"))
        met = "yes" if timing.merged_wins() else "no"
        rows.append((f"{name}: merged <= 1.10 of the base, below stacked and peft", three, met))
    if device == "cuda":
        rows.append(("block: merged <= 1.03", f"{block.ratio('merged'):.3f}", _met(block.ratio("merged") <= 1.03)))
        rows.append(("merge of a block <= 1 ms", f"{merge_ms:.2f} ms", _met(merge_ms <= 1)))
    return table(*rows)


def _met(yes: bool) -> str:
    return "yes" if yes else "no"


def inputs(case: Case, flags: argparse.Namespace, dtype: torch.dtype) -> tuple[dict, Tokens]:
    """Keyword arguments of a forward, `--batch` samples at one timestep, and the tokens that its linears see."""
    given = random_inputs(case.config, case.frames, case.height, case.width, case.audio, flags.device)
    grid = token_grid(case.config, case.frames, case.height, case.width)
    audio, batch = given.pop("audio"), flags.batch
    given["clip"] = given["clip"][:, : case.clip]
    given = {name: value.to(dtype) if name != "timestep" else value for name, value in given.items()}
    given = {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in given.items()}
    given["audio"] = type(audio)(audio.tokens.to(dtype).repeat(batch, 1, 1, 1), audio.lengths.repeat(batch, 1))
    counts = grid[0] * grid[1] * grid[2], case.config.text_len, case.clip, grid[0] * case.audio
    return given, Tokens(*(batch * count for count in counts), batch=batch)


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=CASES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--layers", type=int, help="blocks of the model")
    parser.add_argument("--batch", type=int, default=1, help="samples at one timestep, as in batched guidance")
    flags = parser.parse_args()
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here")
    if flags.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[flags.preset]
    case = replace(case, config=replace(case.config, num_layers=flags.layers or case.config.num_layers))
    dtype = getattr(torch, flags.dtype or ("float32" if flags.device == "cpu" else "bfloat16"))
    name = torch.cuda.get_device_name() if flags.device == "cuda" else "CPU, one thread"
    print(f"## {flags.preset}, {str(dtype).removeprefix('torch.')}, {name}, {flags.rounds} rounds", flush=True)
    timings = linear_table(case, flags, dtype)
    given, tokens = inputs(case, flags, dtype)
    dit = random_dit(case.config, dtype).to(flags.device)
    bank = random_bank(dit, case.rank)
    plans = {s: build_plan(dit, bank, tokens=tokens, strategy=s) for s in ("stacked", "merged", "auto")}
    with GatedModels(dit, bank, given["timestep"]) as models:
        config = case.config
        sizes = f"d = {config.dim}, ffn {config.ffn_dim}, R = {3 * case.rank}, {tokens}"
        block = model_table(f"One block: {sizes}", models.block(given), flags)
        whole = model_table(f"Whole model, {config.num_layers} block(s)", models.whole(given), flags)
        merge_ms = merging(models, plans["auto"], flags)
    percents = ", ".join(f"{name} {plan.flops_percent:.2f} %" for name, plan in plans.items())
    print(f"\nFLOPs added to a pass: {percents}. Merging the weights of a block: {merge_ms:.3g} ms.")
    if flags.preset == "14b":
        for name in ("base", "peft", "auto"):
            per_block = median(block.seconds[name])
            print(
                f"{name}: 40 blocks are {40 * per_block:.2f} s a pass of batch {flags.batch} (estimate from one block)"
            )
    print(f"\nwhole model, auto: {whole.cell('auto')}\n\n{criteria(timings, block, merge_ms, flags.device)}")


if __name__ == "__main__":
    main()
