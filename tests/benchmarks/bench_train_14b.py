"""An iteration of training on the DiT of Wan2.1-I2V-14B with FantasyTalking's audio, random weights, on a GPU: seconds,
the share of the GPU's peak that does the model's work (MFU), and peak memory.

    python tests/benchmarks/bench_train_14b.py [--shapes 81x832x480 49x832x480 81x512x512 33x512x512] [--peak 989]
        [--stages expert gate] [--ways joint pair cached group] [--checkpointing attention] [--offload none] [--fp8]

Ways of an iteration: `joint`, both graphs of a pair in memory and one backward pass; `pair`, one video after the other;
`cached`, the same with the reference's errors known; `group`, six pairs of four candidates. MFU: FLOPs that forward and
backward need, nothing computed again, over time and `--peak` (TFLOP/s in bf16; H100 SXM 989, A100 312). `--card 48`
limits the memory to that of a card. `--preset tiny --shapes 9x64x64 --device cpu --rank 2` tries it out anywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from bench_dit_14b import GIB, limit_memory  # noqa: E402
from random_dit import AUDIO_ROWS, random_dit, random_inputs  # noqa: E402
from small_experts import random_bank  # noqa: E402

from fantasy_core import offload  # noqa: E402
from fantasy_core.estimate import pass_flops, token_grid  # noqa: E402
from fantasy_core.fp8_linear import Fp8Linear  # noqa: E402
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, Tokens, attach, build_plan, host_of  # noqa: E402
from fantasy_core.fusion.plan import kind_of  # noqa: E402
from fantasy_core.gate import Beside, FusionGate  # noqa: E402
from fantasy_core.preference import Objective, accumulate_gradient, video_error  # noqa: E402
from fantasy_core.recompute import CHECKPOINTING  # noqa: E402
from fantasy_core.wan import WanDiT  # noqa: E402
from train.optimizers import OPTIMIZERS, make_optimizer  # noqa: E402
from train.trainer import Switch  # noqa: E402

WAYS, STAGES, CANDIDATES = ("joint", "pair", "cached", "group"), ("expert", "gate"), 4
HEADER = "| stage | shape | way | s an iteration | s a pair | PFLOP | MFU | peak memory |"


class Trainee:
    """A DiT with one expert that is trained, or with three and a gate that is."""

    def __init__(self, dit: WanDiT, stage: str, rank: int, optimizer: str, device: torch.device):
        self.dit, self.stage, dtype = dit, stage, dit.patch_embedding.weight.dtype
        host, names = host_of(dit), ("mn",) if stage == "expert" else ("mn", "ls", "vq")
        bank = random_bank(dit, (rank,) * len(names), names, linears=LINEARS + AUDIO_LINEARS)
        if stage == "expert":
            self.bank = bank.to(device).requires_grad_()
            gate = Beside(None, {"mn": 1.0}, host.num_blocks).to(device)
            self.parameters = list(self.bank.parameters())
        else:
            self.bank = bank.place(device, dtype)
            gate = FusionGate(host.num_blocks, host.dim, len(names), names=names).to(device)
            self.parameters = list(gate.parameters())
        self.switch = Switch(gate, names, host.num_blocks)
        self.optimizer = make_optimizer(optimizer, self.parameters, lr=1e-5)
        self.objective = Objective()

    def attached(self):
        return attach(self.dit, self.bank, self.switch, "stacked")

    def iteration(self, way: str, videos: list[dict], known: Tensor) -> None:
        """One step of the optimiser; `known` [V] are errors of the reference, which only `cached` believes."""

        def error(video: int) -> Tensor:
            latents = videos[video]["latents"]
            return video_error(self.dit(**videos[video]), torch.zeros_like(latents))[0]

        self.optimizer.zero_grad(set_to_none=True)
        pairs = list(combinations(range(len(videos)), 2))
        if way != "cached":
            with self.switch.off(), torch.no_grad():
                known = torch.stack([error(video) for video in range(len(videos))])
        if way == "joint":
            errors = torch.stack([error(0), error(1)])
            self.objective(errors[:1], errors[1:], known[:1], known[1:])[0].backward()
        else:
            form = "prepass" if way == "group" and self.stage == "expert" else "buffers"
            accumulate_gradient(error, pairs, self.parameters, self.objective, known, form=form)
        self.optimizer.step()

    def flops(self, way: str, frames: int, height: int, width: int) -> int:
        """What an iteration needs: the reference's passes, and of every policy pass forward and backward once."""
        config, videos = self.dit.config, CANDIDATES if way == "group" else 2
        grid = token_grid(config, frames, height, width)
        base = pass_flops(config, grid, audio_rows=AUDIO_ROWS)
        rows = 257 * bool(config.clip_dim)
        tokens = Tokens(grid[0] * grid[1] * grid[2], config.text_len, rows, AUDIO_ROWS * grid[0])
        head = 2 * tokens.video * config.dim * config.out_dim * config.patch_size[1] * config.patch_size[2]
        policy = base.total + 2 * base.attention + head + self.linear_flops(tokens)
        return videos * (policy + (0 if way == "cached" else base.total))

    def linear_flops(self, tokens: Tokens) -> int:
        """Of all linears of the blocks: the experts' forward, and the backward of base and experts. Text, image and
        audio need no gradient, nor does what enters block 0; a trained expert needs those of its factors."""
        plan, total = build_plan(self.dit, self.bank, tokens=tokens, strategy="stacked"), 0
        for address, linear in plan.linears.items():
            block, name = address.split(".")[1], address.split(".", 2)[2]
            first = block == "0" and name in ("self_attn.q", "self_attn.k", "self_attn.v")
            flows = kind_of(name) == "video" and not first
            n, r, size_in, size_out = 2 * linear.tokens, linear.rank, linear.size_in, linear.size_out
            total += int(linear.flops) * (2 if self.stage == "expert" else 1)  # forward; dA and dB
            total += n * r * size_out + flows * n * size_in * (r + size_out)  # through B; through A and W
        return total


def store_in_fp8(dit: WanDiT) -> None:
    """The linears of the blocks as an fp8 file gives them."""
    for name, linear in list(dit.blocks.named_modules()):
        if type(linear) is nn.Linear:
            stored = Fp8Linear(linear, torch.float8_e4m3fn, None)
            stored.weight.data, stored.bias = linear.weight.data.to(torch.float8_e4m3fn), linear.bias
            dit.blocks.set_submodule(name, stored)


def measure(run: Callable[[], None], device: torch.device, repeat: int) -> tuple[float, str]:
    """The median of `repeat` runs after one that is not counted, in seconds, and the peak of memory."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    peak = f"{torch.cuda.max_memory_allocated(device) / GIB:.1f} GiB" if device.type == "cuda" else "-"
    return median(times[1:]), peak


def row(trainee: Trainee, shape: str, way: str, flags: argparse.Namespace, device: torch.device) -> str:
    frames, width, height = map(int, shape.split("x"))
    limit_memory(flags.card, device)
    given = random_inputs(trainee.dit.config, frames, height, width, AUDIO_ROWS, str(device))
    count = CANDIDATES if way == "group" else 2
    videos = [given | {"latents": torch.randn_like(given["latents"])} for _ in range(count)]
    known = torch.rand(count, device=device) + 1
    label = f"| {trainee.stage} | {shape} | {way} |"
    try:
        seconds, peak = measure(lambda: trainee.iteration(way, videos, known), device, flags.repeat)
    except torch.OutOfMemoryError:
        return f"{label} out of memory | | | | |"
    flops = trainee.flops(way, frames, height, width)
    pairs = count * (count - 1) // 2
    used = flops / seconds / (flags.peak * 1e12)
    return f"{label} {seconds:.3g} | {seconds / pairs:.3g} | {flops / 1e15:.3g} | {used:.1%} | {peak} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wan2.1-i2v-14b")
    parser.add_argument("--shapes", nargs="+", default=["81x832x480", "49x832x480", "81x512x512", "33x512x512"])
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--checkpointing", default="attention", choices=CHECKPOINTING)
    parser.add_argument("--offload", default="none", choices=("none", "blocks"))
    parser.add_argument("--fp8", action="store_true", help="the base stays in fp8")
    parser.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS)
    parser.add_argument("--card", default="all", help="GiB, or `all`")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args(argv)
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here")
    device = torch.device(flags.device)
    dit = random_dit(flags.preset, getattr(torch, flags.dtype))
    dit.checkpointing = flags.checkpointing
    if flags.fp8:
        store_in_fp8(dit)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{flags.preset}, rank {flags.rank}, checkpointing {flags.checkpointing}, offload {flags.offload}, "
          f"{'fp8 under ' * flags.fp8}{flags.dtype}, {flags.optimizer}, {name}\n")  # fmt: skip
    print(f"{HEADER}\n|{'---|' * (HEADER.count('|') - 1)}", flush=True)
    for stage in flags.stages:
        with offload.blocks(dit, device) if flags.offload == "blocks" else nullcontext(dit.to(device)):
            trainee = Trainee(dit, stage, flags.rank, flags.optimizer, device)
            with trainee.attached():
                for shape in flags.shapes:
                    for way in flags.ways:
                        print(row(trainee, shape, way, flags, device), flush=True)
            del trainee
    return 0


if __name__ == "__main__":
    sys.exit(main())
