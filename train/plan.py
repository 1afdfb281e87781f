"""What a training run costs before it runs: FLOPs, hours, memory, disk.

    python -m train.plan --pairs 2000 --iterations 500 --height 320 --width 576 --gpus 8
    python -m train.plan --pairs 64 --model miniature --frames 41 --height 64 --width 64 --rank 8 --dtype fp32 \\
        --checkpointing none --calibrate true

Without --pairs it plans what the paper ran. Nothing is loaded. Hours come from assumed rates of a few GPUs, from
--rate, or from --calibrate, which trains a small model on --device for a few seconds. `train.expert --dry-run` and
`train.gate --dry-run` print the same table from the real files.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from fantasy_core.components import check_device
from fantasy_core.errors import UserError
from fantasy_core.estimate import token_grid, told_flops, told_seconds
from fantasy_core.flags import DTYPES
from fantasy_core.preference import FORMS, LOSSES, Objective
from fantasy_core.wan import PRESETS
from train.budget import ASSUMED, Budget
from train.cost import Rates, Training, cached_bytes, uniform_ranks
from train.run import command, setting
from train.trainer import UNITS

PAPER = {"mn": (180_000, 10), "ls": (100_000, 20), "vq": (130_000, 10), "gate": (18_000, 5)}  # pairs, epochs
PAPER_GPUS = 16


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    stage: str = setting("expert", "which stage of training", choices=("expert", "gate"))
    pairs: int | None = setting(None, "to train on (default: the paper's run)", least=1)
    epochs: float = setting(1.0, "over the pairs", least=0)
    iterations: int | None = setting(None, "instead of epochs", least=1)
    batch: int = setting(4, "units (pairs or inputs) in an iteration", least=1)
    unit: str = setting("pair", "what shares one draw: a pair, or all pairs of an input", choices=UNITS)
    videos: int = setting(4, "of an input, all paired with one another, where the unit is an input", least=2)
    model: str = setting("wan2.1-i2v-14b", "the base", choices=tuple(PRESETS))
    frames: int = setting(81, "of a video, 1 + 4k", least=1)
    height: int = setting(480, "in pixels", least=16)
    width: int = setting(832, "in pixels", least=16)
    rank: int = setting(128, "of each expert", least=1)
    audio_linears: bool = setting(True, "14 linears a block with an expert, else 12")
    experts: int = setting(3, "under the gate", least=1)
    loss: str = setting("dpo", "of a pair", choices=LOSSES)
    form: str = setting("buffers", "of the gradient: more memory, or a third more work", choices=FORMS)
    checkpointing: str = setting("blocks", "blocks: recomputed instead of kept", choices=("none", "blocks"))
    dtype: str = setting("bf16", "of the base", choices=tuple(DTYPES))
    gpus: int | None = setting(None, "that share the work (default: 1; for the paper's run 16)", least=1)
    rate: float | None = setting(None, "FLOP/s of one of them, as they are reached", least=1.0)
    calibrate: bool = setting(False, "measure the rates of --device")
    device: str = setting("cpu", "cpu, cuda, ...")


def training_of(settings: PlanSettings, stage: str) -> Training:
    config, gate = PRESETS[settings.model], stage == "gate"
    ranks = uniform_ranks(config, settings.rank * (settings.experts if gate else 1), audio=settings.audio_linears)
    return Training(
        config,
        ranks,
        gate=config.num_layers * settings.experts * (config.dim + 1) if gate else 0,
        reference="backbone" if Objective(settings.loss).needs_reference else "none",
        form=settings.form,
        checkpointing=settings.checkpointing != "none",
        dtype=DTYPES[settings.dtype],
    )


def budget(settings: PlanSettings, stage: str, pairs: int, epochs: float, rates: dict[str, Rates]) -> Budget:
    """The run of one stage."""
    config = PRESETS[settings.model]
    grid = token_grid(config, settings.frames, settings.height, settings.width)
    videos = settings.videos if settings.unit == "input" else 2
    units = max(1, round(pairs / math.comb(videos, 2)))
    iterations = settings.iterations or max(1, round(units * epochs / settings.batch))
    gpus = settings.gpus or 1
    training, sizes = training_of(settings, stage), (settings.frames, settings.height, settings.width)
    return Budget(
        training, {(grid, videos): units}, pairs, settings.batch, iterations,
        cached=cached_bytes(config, *sizes, training.dtype), gpus=gpus, rates=rates,
    )  # fmt: skip


def rates_of(settings: PlanSettings, dry_run: bool) -> dict[str, Rates]:
    """Assumed, given or, in earnest, measured."""
    if settings.calibrate and not dry_run:
        from train.speed import calibrate

        device = check_device(settings.device)
        one = budget(settings, settings.stage, 1, 1, ASSUMED)
        rates, told = calibrate(one.training, *one.largest, device)
        print(f"measured on {device} with {told}: linears {told_flops(rates.linears)}/s, ", end="")
        print(f"attention {told_flops(rates.attention)}/s, the rest {rates.traffic / 1e9:.3g} GB/s, ", end="")
        print(f"a block's pass {1e3 / rates.passes:.3g} ms")
        return {f"this {device.type}": rates}
    if settings.rate is not None:
        return {f"at {settings.rate:.3g} FLOP/s": Rates(settings.rate, settings.rate)}
    return ASSUMED


def paper_table(settings: PlanSettings, rates: dict[str, Rates]) -> str:
    """What the paper ran, stage by stage, at the size of the settings."""
    gpus, lines, total = settings.gpus or PAPER_GPUS, [], dict.fromkeys(rates, 0.0)
    for name, (pairs, epochs) in PAPER.items():
        one = budget(settings, "gate" if name == "gate" else "expert", pairs, epochs, rates)
        took = {gpu: one.seconds(rate) for gpu, rate in rates.items()}  # on one
        total = {gpu: total[gpu] + seconds for gpu, seconds in took.items()}
        told = ", ".join(f"{gpu} {told_seconds(seconds / gpus)}" for gpu, seconds in took.items())
        visits = f"{pairs:,} pairs x {epochs} epochs"
        lines.append(f"{name:<6}{visits:<28}{told_flops(one.work.flops):<12}{told}")
    lines.append(f"{'all':<46}" + ", ".join(f"{gpu} {told_seconds(seconds / gpus)}" for gpu, seconds in total.items()))
    size = f"{settings.frames} frames of {settings.width} x {settings.height}"
    lines.append(f"\nThat is on {gpus} GPUs, every pair a visit of two videos of {size}.")
    if min(total.values()) / gpus > 60 * 86400:
        lines.append(
            "It takes months: so the paper's epochs were hardly visits of this size. Plan a run of your own with\n"
            "--pairs and --iterations, shorter or smaller videos, and --unit input."
        )
    return "\n".join(lines)


def run(settings: PlanSettings, dry_run: bool) -> None:
    _check_size(settings)
    rates = rates_of(settings, dry_run)
    if settings.pairs is None:
        print("the paper's run\n" + paper_table(settings, rates))
    else:
        print(budget(settings, settings.stage, settings.pairs, settings.epochs, rates))


def _check_size(settings: PlanSettings) -> None:
    if settings.frames % 4 != 1 or settings.height % 16 or settings.width % 16:
        raise UserError(
            "there are no videos of this size",
            got=f"{settings.frames} frames of {settings.width} x {settings.height}",
            expected="1 + 4k frames, and multiples of 16 pixels",
            do="correct --frames, --height or --width",
        )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(PlanSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
