"""Experts and gate for hosts that know no gate.

    python -m train.export --base FILE --expert mn=FILE ls=FILE vq=FILE --gate GATE --averaged OUT.safetensors
    python -m train.export --base FILE --expert ... --gate GATE --strengths
    python -m train.export --base FILE --expert mn=FILE ls=FILE --gate GATE --kohya OUT.safetensors
    python -m train.export --base FILE --expert mn=FILE --peft FOLDER

`--averaged` writes one ordinary LoRA: the experts, each block weighed by the gate's mean over the steps of a schedule.
`--kohya` writes that one under kohya's names (sd-scripts, musubi-tuner); the former's are ComfyUI's and diffusers'.
`--strengths` prints one strength a step for every expert, where the gate is the same in all blocks. `--peft` writes one
expert as an adapter that peft loads. `--gate` takes what `animate` takes: a gate file, constant:..., steps:..., ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.errors import UserError, report
from fantasy_core.experts import ExpertBank, averaged, save_expert, to_kohya, to_peft
from fantasy_core.flow import schedule, timestep
from fantasy_core.gate import step_strengths, weights_at
from fantasy_core.gate_files import load_gate
from fantasy_core.manual_gates import KINDS, manual_gate
from fantasy_core.mixture import named
from fantasy_core.wan import WanDiT
from fantasy_core.weights import dit_config
from fantasy_core.weights.wan import open_dit


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the transformer (file or folder; its sizes are read)")
    parser.add_argument("--expert", nargs="+", action="extend", required=True, metavar="NAME=FILE")
    parser.add_argument("--gate", help="a gate file or a gate by hand (default: 1 each)")
    parser.add_argument("--steps", type=int, default=30, help="of the schedule to average over (30)")
    parser.add_argument("--shift", type=float, default=5.0, help="of that schedule (5)")
    parser.add_argument("--ignore-unsupported", action="store_true", help="use LoRAs without what no expert can hold")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--averaged", type=Path, metavar="FILE", help="write one LoRA for all")
    what.add_argument("--kohya", type=Path, metavar="FILE", help="the same under kohya's names")
    what.add_argument("--strengths", action="store_true", help="print strengths by step")
    what.add_argument("--peft", type=Path, metavar="FOLDER", help="write the one expert for peft")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    return parser


def gate_weights(args: argparse.Namespace, bank: ExpertBank, host: WanDiT) -> Tensor:
    """The gate's weights [S, J, M, E] at the steps of the schedule."""
    sigmas = schedule(args.steps, args.shift)
    text = args.gate or "constant:" + ",".join("1" for _ in bank.names)
    if text.partition(":")[0] in KINDS:
        gate = manual_gate(text, bank.names, host.config.num_layers, sigmas)
    else:
        gate = load_gate(text, hashes=bank.hashes, host=host, as_table=True)
    return weights_at(gate, timestep(sigmas[:-1]))


def run(args: argparse.Namespace) -> None:
    with torch.device("meta"):
        host = WanDiT(dit_config(open_dit(args.base)))
    bank = ExpertBank.load(dict(map(named, args.expert)), host, ignore_unsupported=args.ignore_unsupported)
    if args.peft:
        if len(bank.names) > 1 or args.gate:
            raise UserError(
                "an adapter holds one expert",
                got=f"{', '.join(bank.names)}{' and a gate' if args.gate else ''}",
                expected="one --expert and no --gate",
                do="export them one by one, or --averaged as one LoRA",
            )
        to_peft(bank.expert(bank.names[0]), args.peft)
        return
    w = gate_weights(args, bank, host)
    if out := args.averaged or args.kohya:
        write = save_expert if args.averaged else to_kohya
        write(out, averaged(bank, w.mean(0)))
        print(f"{out}: {', '.join(bank.names)} averaged over {args.steps} steps of shift {args.shift:g}")
        return
    for name, column in zip(bank.names, step_strengths(w).T, strict=True):
        print(f"{name}: {', '.join(f'{strength:.4g}' for strength in column.tolist())}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = flags().parse_args(argv)
    return report(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
