"""Stage 2: the fusion gate, w = softmax(W t_emb) + b in every block (Eq. 3), trained on full pairs; experts frozen.

    python -m train.gate --expert mn=runs/mn/mn.safetensors ls=runs/ls/ls.safetensors vq=runs/vq/vq.safetensors \\
        --pairs pairs/pairs_full.jsonl --cache cache --out runs/gate --iterations 500

The gate is OUT/gate.safetensors. The paper trains it at lr 1e-6, beta 1000 (`--preset paper`), and so does this by
default, from the average of the experts, which is ours; there b hardly moves, since AdamW moves a number by its
learning rate an iteration at most. `--start sum` begins with every expert at 1, `--bias-lr` gives b a rate of its own,
`--reference initial-gate` compares with the start instead of the backbone. Ablations: `--granularity expert|module`,
`--timestep false`, `--gate-form linear`. `python -m train.gate fit` needs no pairs at all: see its --help.
"""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from fantasy_core.errors import UserError
from fantasy_core.fusion import attach, host_of
from fantasy_core.fusion.coefficients import ORDER
from fantasy_core.gate import FORMS as GATE_FORMS
from fantasy_core.gate import GRANULARITIES, FusionGate
from fantasy_core.gate_files import save_gate
from fantasy_core.mixture import named
from train.optimizers import make_optimizer
from train.presets import read_preset
from train.run import command, setting
from train.stage import Stage
from train.stage_settings import StageSettings
from train.trainer import Switch
from train.watch import gate_statistics

REFERENCES, STARTS = ("backbone", "initial-gate"), ("average", "sum")


@dataclass(frozen=True, kw_only=True)
class GateSettings(StageSettings):
    expert: tuple[str, ...] = setting(help="NAME=FILE of every expert, in the gate's order")
    granularity: str = setting("block", "one gate a block, for all blocks, or for each linear", choices=GRANULARITIES)
    timestep: bool = setting(True, "whether weights change with the timestep")
    gate_form: str = setting("softmax", "softmax is the paper's", choices=GATE_FORMS)
    start: str = setting("average", "weights to begin with: 1/E each, or 1 each", choices=STARTS)
    reference: str = setting("backbone", "what the margin is measured from", choices=REFERENCES)
    lr: float = setting(1e-6, "of AdamW, for W", least=0)
    bias_lr: float | None = setting(None, "for b (default: as for W)", least=0)
    beta: float = setting(1000.0, "of the mean error, with the 1/2 of Eq. 1 (0: simpo's, found on the first pairs)")


def fresh_gate(settings: GateSettings, blocks: int, dim: int, names: tuple[str, ...]) -> FusionGate:
    """W and b zero, which weighs every expert 1/E; `sum` lifts b to weights of 1."""
    linears = len(ORDER) if settings.granularity == "module" else 1
    kind = {"granularity": settings.granularity, "timestep": settings.timestep, "num_linears": linears}
    gate = FusionGate(blocks, dim, len(names), form=settings.gate_form, names=names, **kind)
    weight = 1.0 if settings.start == "sum" else 1 / len(names)
    with torch.no_grad():
        gate.bias.fill_(weight if settings.gate_form == "linear" else weight - 1 / len(names))
    return gate


def parameter_groups(gate: FusionGate, settings: GateSettings) -> list[dict]:
    """W and b, each at its rate; no weight decay, which would pull weights to the average."""
    rest = [parameter for name, parameter in gate.named_parameters() if name != "bias"]
    bias_lr = settings.lr if settings.bias_lr is None else settings.bias_lr
    return [{"params": rest, "lr": settings.lr}, {"params": [gate.bias], "lr": bias_lr}]


@contextmanager
def initial(switch: Switch, start: FusionGate):
    """The reference is the gate as it began."""
    now, switch.gate = switch.gate, start
    try:
        yield
    finally:
        switch.gate = now


def run(settings: GateSettings, dry_run: bool) -> None:
    if settings.reference == "initial-gate" and settings.reference_errors == "cached":
        raise UserError(
            "only the backbone's errors can be kept",
            got="--reference initial-gate with --reference-errors cached",
            expected="errors that later runs can use too; a gate's own start is not theirs",
            do="leave out --reference-errors, or compare with the backbone",
        )
    stage = Stage(settings, "full", experts=dict(map(named, settings.expert)))
    if dry_run:
        print(stage.budget)
        return
    with stage.dit() as dit:
        host, bank = host_of(dit), stage.experts.place(stage.world.device)
        gate = fresh_gate(settings, host.num_blocks, host.dim, bank.names).to(stage.world.device)
        start, switch = copy.deepcopy(gate).requires_grad_(False), Switch(gate, bank.names, host.num_blocks)
        optimizer = make_optimizer(settings.optimizer, parameter_groups(gate, settings), weight_decay=0.0)
        reference = switch.off if settings.reference == "backbone" else lambda: initial(switch, start)

        def statistics() -> dict:
            return gate_statistics(gate, start, bank.names, settings.sigmas, host.time_embedding)

        with attach(host, bank, switch, "stacked"):
            stage.train(dit, list(gate.parameters()), optimizer, reference, statistics, calibrated=True)
        if stage.world.is_main:
            save_gate(settings.out / "gate.safetensors", gate, hashes=bank.hashes, host=host)
        print(settings.out / "gate.safetensors")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["fit"]:
        from train import gate_fit

        return gate_fit.main(argv[1:])
    return command(GateSettings, __doc__, run, argv, partial(read_preset, "gate"))


if __name__ == "__main__":
    sys.exit(main())
