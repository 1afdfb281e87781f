"""The experts, LoRAs and gate of a command: read from its flags, checked before a device is asked, hung on the DiT."""

from __future__ import annotations

import argparse
import math
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError
from .estimate import AUDIO_ROWS
from .experts import Expert, ExpertBank, load_expert
from .flow import timestep
from .fusion import NAMES, Tokens, attach, build_plan, host_of
from .fusion.calibrate import measure
from .gate import Beside, check_gate, weights_at
from .gate_files import base_warning, load_gate
from .manifest import sha256
from .manual_gates import FORMS, KINDS, STRONGEST, manual_gate
from .wan import WanConfig, WanDiT

PLOTS = (".png", ".jpg", ".jpeg", ".webp")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("experts and LoRAs").add_argument
    add("--expert", nargs="+", action="extend", default=[], metavar="NAME=FILE", help="LoRAs that the gate weighs")
    add("--gate", help="a file, or constant:0.3,0.5,0.2, steps:..., blocks:..., table:FILE (default: 1 each)")
    add("--lora", nargs="+", action="extend", default=[], metavar="FILE:STRENGTH", help="LoRAs of a fixed strength")
    add("--ignore-unsupported", action="store_true", help="use LoRAs without what is no low-rank change of a block")
    add("--strategy", choices=NAMES, default="auto", help="how experts are computed (default: auto)")
    add("--gate-plot", type=Path, metavar="PNG", help="draw the weights, block by step")


@dataclass(frozen=True)
class Mixture:
    """Experts weighed by a gate (`gate_text`: a file or a manual gate, None = 1 each) and LoRAs of fixed strength."""

    experts: tuple[Expert, ...]
    loras: dict[str, tuple[Expert, float]]
    gate_text: str | None
    strategy: str
    plot: Path | None
    config: WanConfig

    @classmethod
    def from_flags(cls, flags: argparse.Namespace, config: WanConfig, sigmas: Tensor) -> Mixture | None:
        """None without experts and LoRAs. Raises UserError for files and names that do not fit one another or the model
        of `config`; nothing is put on a device."""
        lenient = {"ignore_unsupported": flags.ignore_unsupported}
        experts = tuple(load_expert(file, name, **lenient) for name, file in map(named, flags.expert))
        static = [(load_expert(file, None, **lenient), strength) for file, strength in map(_strength, flags.lora)]
        if not experts and (flags.gate or flags.gate_plot):
            raise UserError(
                "a gate without experts",
                got="--gate" if flags.gate else "--gate-plot",
                expected="LoRAs for it to weigh",
                do="add --expert NAME=FILE ..., or leave it out",
            )
        if flags.gate_plot is not None:
            _check_plot(flags.gate_plot)
        if not experts and not static:
            return None
        mixture = cls(
            experts, {lora.name: (lora, strength) for lora, strength in static}, flags.gate, flags.strategy,
            flags.gate_plot, config,
        )  # fmt: skip
        if len(mixture.loras) < len(static):
            ExpertBank.stack([lora for lora, _ in static], mixture.blueprint)  # says which name is there twice
        mixture.gate(sigmas)
        return mixture

    @cached_property
    def blueprint(self) -> nn.Module:
        """The DiT without its weights."""
        with torch.device("meta"):
            return WanDiT(self.config)

    @cached_property
    def bank(self) -> ExpertBank:
        return ExpertBank.stack([*self.experts, *(lora for lora, _ in self.loras.values())], self.blueprint)

    def gate(self, sigmas: Tensor) -> nn.Module:
        """The gate of all experts and LoRAs; `sigmas` [S + 1] is the schedule that a manual gate's steps count."""
        names, blocks = tuple(expert.name for expert in self.experts), self.config.num_layers
        gate = None
        if names and (self.gate_text or "").partition(":")[0] in ("", *KINDS):
            gate = manual_gate(self.gate_text or "constant:" + ",".join("1" for _ in names), names, blocks, sigmas)
        elif names:
            if not os.path.isfile(self.gate_text or ""):
                got, do = self.gate_text or "", "check --gate"
                raise UserError("the gate is not there", got=got, expected=f"a file, or {FORMS}", do=do)
            hashes = {name: self.bank.hashes[name] for name in names}
            gate = load_gate(self.gate_text, hashes=hashes, host=self.blueprint)
        strengths = {name: strength for name, (_, strength) in self.loras.items()}
        together = Beside(gate, strengths, blocks) if strengths else gate
        check_gate(together, experts=self.bank.names, num_blocks=blocks)
        return together

    @cached_property
    def record(self) -> dict:
        """What a video's settings say of it."""
        hashes, gate = self.bank.hashes, self.gate_text
        return {
            "experts": {expert.name: hashes[expert.name] for expert in self.experts},
            "loras": {name: [hashes[name], strength] for name, (_, strength) in self.loras.items()},
            "gate": _content(gate),
            "strategy": self.strategy,
        }

    def explain(self, grid: tuple[int, int, int], batch: int, dtype: torch.dtype, streamed: bool) -> str:
        """The plan of its linears, for people; `grid` is the DiT's tokens (F, h, w)."""
        video = grid[0] * grid[1] * grid[2]
        tokens = Tokens(
            video=batch * video, text=batch * self.config.text_len, image=batch * 257 * bool(self.config.clip_dim),
            audio=batch * AUDIO_ROWS * grid[0], batch=batch,
        )  # fmt: skip
        plan = build_plan(
            self.blueprint, self.bank, tokens=tokens, strategy=self.strategy, streamed=streamed, dtype=dtype
        )
        return plan.explain()

    def measured_on(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether what merging costs is measured: CPUs differ in half precision; elsewhere FLOPs decide."""
        return self.strategy == "auto" and device.type == "cpu" and dtype.itemsize < 4

    @contextmanager
    def attached(self, dit: nn.Module, sigmas: Tensor, *, device: torch.device, dtype: torch.dtype, streamed: bool):
        """Hang everything on the DiT for as long as the context is open, and draw the plot that was asked for.

        streamed: the experts wait in host memory, as offloaded blocks do.
        """
        gate, host = self.gate(sigmas).to(device), host_of(dit)
        if warning := base_warning(getattr(gate, "gate", gate), host):
            print(f"warning: {self.gate_text}: {warning}", file=sys.stderr)
        if self.plot is not None:
            from .gate_plot import save_plot

            w = weights_at(gate, timestep(sigmas[:-1]).to(device), host.time_embedding)
            save_plot(self.plot, w, gate.names, sigmas)
        bank = self.bank.place("cpu" if streamed else device, dtype)
        thresholds = measure(host, bank) if self.measured_on(device, dtype) else None
        with attach(host, bank, gate, self.strategy, per_sample=False, thresholds=thresholds):
            yield


def named(text: str) -> tuple[str, Path]:
    """`mn=FILE` -> ("mn", FILE)."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise UserError("an expert without a name", got=text, expected="NAME=FILE", do=f"pass --expert mn={text}")
    return name, Path(file)


def _strength(text: str) -> tuple[Path, float]:
    """`FILE:0.8` -> (FILE, 0.8); without a number the strength is 1. Raises UserError for one that is none."""
    file, colon, number = text.rpartition(":")
    if not colon or (Path(text).exists() and not Path(file).exists()):
        return Path(text), 1.0  # the colon belongs to the path
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan if Path(file).exists() else None
    if strength is None:
        return Path(text), 1.0
    if not abs(strength) <= STRONGEST:  # NaN too
        raise UserError(
            "a strength is no number that can be used",
            got=text,
            expected=f"FILE:NUMBER, from -{STRONGEST:g} to {STRONGEST:g}, with a point for decimals",
            do="write --lora FILE:0.8",
        )
    return Path(file), strength


def _check_plot(path: Path) -> None:
    """Raise UserError for a picture that could not be written when everything is loaded."""
    got = f"the name {path.name or path}" if path.suffix.lower() not in PLOTS else None
    if got is None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        got = f"no folder {path.parent} that may be written to"
    if got or path.is_dir():
        expected = f"a file NAME{' or NAME'.join(PLOTS)} in an existing, writable folder"
        raise UserError(
            f"cannot write {path}", got=got or "a folder of that name", expected=expected, do="correct --gate-plot"
        )


def _content(gate: str | None) -> str | None:
    """The gate as it is told in a record: what a file holds, not what it is called."""
    kind, _, rest = (gate or "").partition(":")
    if kind == "table" and "\n" not in rest.strip():
        return f"table:{sha256(Path(rest))}"
    return gate if kind in ("", *KINDS) else sha256(Path(gate))
