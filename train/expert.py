"""Stage 1: one expert, a LoRA on every linear of every block, trained on the pairs of its dimension (Eq. 1, 2).

    python -m train.expert --pairs pairs/pairs_ls.jsonl --cache cache --dimension ls --out runs/ls --iterations 500

The expert is OUT/NAME.safetensors (and NAME.audio.safetensors). Interrupted, the same command goes on and ends with the
same bits. `--dimension ls` compares videos by their lip masks (Eq. 2); `full` is the single-LoRA baseline, on full
pairs. The paper trains rank 128 at lr 1e-5, beta 5000, on 14 linears (`--preset paper`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import torch

from fantasy_core.components import WanFromText
from fantasy_core.errors import UserError
from fantasy_core.expert_files import DIMENSIONS as ALL_DIMENSIONS
from fantasy_core.experts import Expert, ExpertBank, LowRank, save_expert
from fantasy_core.flow import draw_noise
from fantasy_core.fusion import attach, host_of
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS, Host, split_address
from fantasy_core.gate import Beside
from fantasy_core.gate_files import base_fingerprint
from train.optimizers import make_optimizer
from train.presets import read_preset
from train.run import command, setting
from train.stage import Stage
from train.stage_settings import StageSettings
from train.trainer import Switch

START = 4  # what the draw of A is for


@dataclass(frozen=True, kw_only=True)
class ExpertSettings(StageSettings):
    dimension: str = setting(help="what the pairs prefer", choices=ALL_DIMENSIONS)
    rank: int = setting(128, "of the LoRA", least=1)
    audio_linears: bool = setting(True, "also keys and values of the audio attention (the paper's 14 linears)")
    lr: float = setting(1e-5, "of AdamW", least=0)
    weight_decay: float = setting(0.0, "of AdamW", least=0)
    beta: float = setting(5000.0, "of the mean error, with the 1/2 of Eq. 1 (0: simpo's, found on the first pairs)")
    masked: bool | None = setting(None, "compare by lip masks (default: for ls)")

    @property
    def by_lips(self) -> bool:
        return self.dimension == "ls" if self.masked is None else self.masked


def fresh_expert(host: Host, settings: ExpertSettings) -> Expert:
    """A at random (uniform in +-1/sqrt(in), as peft starts it), B zero: the policy begins as the reference, exactly."""
    names, pairs = LINEARS + (AUDIO_LINEARS if settings.audio_linears else ()), {}
    for number, (address, (size_in, size_out)) in enumerate(host.shapes().items()):
        if split_address(address)[1] in names:
            uniform = torch.special.ndtr(draw_noise((settings.rank, size_in), settings.seed, START, number))
            pairs[address] = LowRank((2 * uniform - 1) / size_in**0.5, torch.zeros(size_out, settings.rank))
    return Expert(settings.dimension, pairs)


def run(settings: ExpertSettings, dry_run: bool) -> None:
    if settings.dimension == "ls" and settings.model == WanFromText.name:
        raise UserError(
            "this base cannot learn lip sync",
            got=f"{settings.model}, which hears nothing",
            expected="a base with FantasyTalking's audio attention",
            do="train mn and vq on it, or give --model wan2.1-i2v-14b",
        )
    stage = Stage(settings, settings.dimension, masked=settings.by_lips)
    if dry_run:
        print(stage.budget)
        return
    with stage.dit() as dit:
        host, name = host_of(dit), settings.dimension
        bank = ExpertBank.stack([fresh_expert(host, settings)], host).to(stage.world.device).requires_grad_()
        parameters = list(bank.parameters())
        optimizer = make_optimizer(settings.optimizer, parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        alone = Beside(None, {name: 1.0}, host.num_blocks).to(stage.world.device)
        switch = Switch(alone, bank.names, host.num_blocks)
        with attach(host, bank, switch, "stacked"):
            stage.train(dit, parameters, optimizer, switch.off)
        told = {"dimension": name, "loss": settings.loss, "beta": stage.objective.beta, "seed": settings.seed}
        told |= {"reduction": "mean", "mask": "lips" if settings.by_lips else "none", "pairs": stage.origin["pairs"]}
        told |= {"iterations": stage.settings.iterations, "base": base_fingerprint(host)}
        told |= {"weights": stage.components.fingerprint}
        path, expert = settings.out / f"{name}.safetensors", bank.requires_grad_(False).expert(name)
        if stage.world.is_main:
            save_expert(path, expert, {f"tlpo.{key}": str(value) for key, value in told.items()})
        print(path)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(ExpertSettings, __doc__, run, argv, partial(read_preset, "expert"))


if __name__ == "__main__":
    sys.exit(main())
