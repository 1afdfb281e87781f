"""The settings that stage 1 (experts) and stage 2 (the gate) have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch

from fantasy_core.flags import TRAINED
from fantasy_core.preference import FORMS, LOSSES, Objective
from fantasy_core.recompute import CHECKPOINTING
from train.distributed import SHARDS
from train.dropout import Dropout
from train.errors import Draws
from train.optimizers import OPTIMIZERS
from train.run import as_json, setting
from train.trackers import TRACKERS
from train.trainer import UNITS, Plan
from train.watch import sigma_quantiles

ALL_FORMS = (*FORMS, "joint")
OFFLOAD, DISTRIBUTIONS = ("none", "blocks"), ("logit-normal", "uniform")
# Not fp16: the gradient of a mean over two million numbers is lost below its smallest, 6e-8
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FREE = (  # not part of what a run is
    "out", "resume", "preset", "iterations", "epochs", "save_every", "held_out_every", "held_out_pairs", "device",
    "shard", "tracker", "sample_every", "sample_count", "sample_steps", "sample_scale", "checkpointing", "offload",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    out: Path = setting(help="folder of the run")
    resume: bool = setting(False, "an error where there is nothing to go on from (a run that is there always goes on)")
    preset: str | None = setting(None, "settings to begin with, under --config and flags: paper or practical")
    pairs: Path = setting(help="pairs_DIMENSION.jsonl")
    cache: Path = setting(help="folder of train.cache")
    iterations: int = setting(1000, "of the optimiser", least=1)
    epochs: float | None = setting(None, "instead: passes over all units", least=0.001, instead_of="iterations")
    batch: int = setting(4, "units (pairs or inputs) in an iteration, of all processes together", least=1)
    unit: str = setting("pair", "what shares one draw: a pair, or all pairs of an input", choices=UNITS)
    loss: str = setting("dpo", "of a pair", choices=LOSSES)
    label_smoothing: float = setting(0.0, "share of pairs labelled the wrong way round")
    sft_weight: float = setting(0.0, "of the chosen videos' own error")
    anchor_weight: float = setting(0.0, "of beta/2 times what the chosen videos' error rises above the reference's")
    text_dropout: float = setting(0.0, "share of units with the empty prompt instead of theirs", least=0, most=1)
    audio_dropout: float = setting(0.0, "share of units without their voice", least=0, most=1)
    distribution: str = setting("logit-normal", "of sigma", choices=DISTRIBUTIONS)
    shift: float = setting(1.0, "of sigma", least=0.01)
    form: str = setting(
        "buffers", "of the gradient: video by video, or all at once (small models)", choices=(*FORMS, "joint")
    )
    warmup: int = setting(0, "iterations in which the learning rate rises", least=0)
    final_lr: float = setting(1.0, "share of the learning rate at the end, reached in a straight line", least=0)
    reference_errors: str = setting("live", "computed each time, or kept in the cache", choices=("live", "cached"))
    reference_draws: int = setting(16, "noises of an input where they are kept", least=1)
    clip_norm: float = setting(1.0, "of the gradient, 0 = none", least=0)
    checkpointing: str = setting(
        "none", "blocks: computed again in backward; attention: less it", choices=CHECKPOINTING
    )
    offload: str = setting("none", "blocks: the base waits in host memory, two blocks on the device", choices=OFFLOAD)
    optimizer: str = setting("adamw", "adamw8bit: moments in 8 bits (bitsandbytes, CUDA)", choices=OPTIMIZERS)
    calibration_pairs: int = setting(32, "pairs to look at before the first iteration (gate, simpo)", least=2)
    save_every: int = setting(50, "iterations between checkpoints", least=1)
    held_out_every: int = setting(100, "iterations between looks at pairs of split validation, 0 = none", least=0)
    held_out_pairs: int = setting(8, "how many of them", least=1)
    sample_every: int = setting(0, "iterations between videos that are sampled, 0 = none", least=0)
    sample_count: int = setting(2, "how many of them, each of another input", least=1)
    sample_steps: int | None = setting(None, "denoising steps of each (default: the model's)", least=1)
    sample_scale: float | None = setting(None, "guidance by the voice, else by the text (default: the model's)")
    tracker: tuple[str, ...] = setting((), f"where the log goes as well: {', '.join(TRACKERS)}", choices=TRACKERS)
    seed: int = setting(0, "of everything that is drawn")
    model: str = setting(TRAINED[0], "the base", choices=TRAINED)
    other_base: bool = setting(False, "accept experts of another base, such as a quantised copy")
    wan: Path | None = setting(None, "folder or file of Wan2.1-I2V-14B, or T2V-1.3B")
    fantasytalking: Path | None = setting(None, "FantasyTalking's checkpoint")
    wav2vec: Path | None = setting(None, "folder of wav2vec2-base-960h")
    device: str = setting("cpu", "cpu, cuda, ...; of several processes each takes a GPU of its own")
    shard: str = setting("none", "blocks: each of several processes holds a part of the base (FSDP2)", choices=SHARDS)
    dtype: str | None = setting(None, "the base computes in (default: the model's)", choices=tuple(DTYPES))

    @property
    def objective(self) -> Objective:
        names = ("loss", "label_smoothing", "sft_weight", "anchor_weight")
        beta = 1.0 if self.loss == "simpo" and self.beta == 0 else self.beta  # until it is known
        return Objective(beta=beta, **{name: getattr(self, name) for name in names})

    def for_units(self, units: int) -> StageSettings:
        """With the iterations that the epochs mean, if there are any."""
        if self.epochs is None:
            return self
        iterations = math.ceil(Fraction(str(self.epochs)) * units / self.batch)  # 0.7 is 7/10 here, not a hair more
        return replace(self, iterations=max(iterations, 1), epochs=None)

    @property
    def dropout(self) -> Dropout:
        return Dropout(self.text_dropout, self.audio_dropout)

    @property
    def plan(self) -> Plan:
        return Plan(**{field: getattr(self, field) for field in Plan.__dataclass_fields__})

    @property
    def draws(self) -> Draws:
        fixed = self.reference_draws if self.reference_errors == "cached" else 0
        return Draws(self.seed, self.distribution, self.shift, fixed)

    @property
    def sigmas(self) -> list[float]:
        """Nine noise levels to look at."""
        return sigma_quantiles(self.distribution, self.shift)

    @property
    def recorded(self) -> dict:
        """As JSON, less what does not make it another run: where it lies, how long it goes, when it is looked at."""
        kept = {n: v for n, v in vars(self).items() if n not in FREE or (n == "iterations" and self.final_lr != 1)}
        return as_json(kept)
