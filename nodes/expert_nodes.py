"""Nodes that fuse LoRAs per block and step: Load Experts, Load Gate, Manual Gate, Apply Gated Experts, Gate Plot."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..fantasy_core.experts import Expert, ExpertBank, load_expert
from ..fantasy_core.flow import schedule, timestep
from ..fantasy_core.fusion import Host
from ..fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS, split_address
from ..fantasy_core.gate import check_gate
from ..fantasy_core.gate_files import base_warning, load_gate
from ..fantasy_core.gate_plot import draw_gate
from ..fantasy_core.manual_gates import manual_gate
from . import GATES
from .audio_nodes import CATEGORY, find_file
from .expert_patch import STRATEGIES, ExpertPatch, embed_times
from .patcher import native_host
from .sampling_nodes import schedule_inputs

Experts, Gate = io.Custom("FT2_EXPERTS"), io.Custom("FT2_GATE")
FORMS = {"constant": "constant", "per-step curve": "steps", "per-block ramp": "blocks", "table": "table"}


@dataclass(frozen=True, eq=False)
class ChosenExpert:
    """An expert and the strength that everything the gate says of it is multiplied with."""

    expert: Expert
    strength: float


@dataclass(frozen=True, eq=False)
class GateSource:
    """Where a gate comes from; it is made when experts and model are known. `sigmas` [S + 1] are what steps count."""

    text: str  # a file, or a manual gate
    sigmas: Tensor | None = None

    def build(self, hashes: dict[str, str], host: Host) -> nn.Module:
        """The gate of these experts. Raises UserError when it is another one's."""
        names = tuple(hashes)
        if self.sigmas is None:
            gate = load_gate(self.text, hashes=hashes, host=host)
        else:
            gate = manual_gate(self.text, names, host.num_blocks, self.sigmas)
        check_gate(gate, experts=names, num_blocks=host.num_blocks)
        return gate


class LoadExperts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2LoadExperts",
            display_name="Load Experts",
            category=CATEGORY,
            description="A LoRA whose strength a gate decides per block and step: any Wan LoRA. Chain as many as "
            "you like.",
            search_aliases=["lora per block", "lora per step", "lora schedule", "multi lora", "tlpo"],
            inputs=[
                io.Combo.Input("lora", options=folder_paths.get_filename_list("loras")),
                io.String.Input("name", default="", tooltip="what gates call it; empty: its dimension or file name"),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.01),
                io.Boolean.Input("audio_twin", default=True, tooltip="also load NAME.audio.safetensors beside it"),
                io.Boolean.Input(
                    "ignore_unsupported", default=False, advanced=True,
                    tooltip="use a LoRA without its parts that are no low-rank change of a block's linear",
                ),
                Experts.Input("experts", optional=True, tooltip="those before this one"),
            ],
            outputs=[Experts.Output(display_name="experts")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, lora: str, name: str, strength: float, audio_twin: bool, ignore_unsupported: bool, experts=()
    ) -> io.NodeOutput:
        path, options = find_file(("loras",), lora), {"ignore_unsupported": ignore_unsupported}
        with torch.inference_mode(False):
            expert = load_expert(path, name.strip() or None, with_audio=audio_twin, **options)
        return io.NodeOutput((*experts, ChosenExpert(expert, strength)))


class LoadGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2LoadGate",
            display_name="Load Gate",
            category=CATEGORY,
            description="A trained fusion gate from models/fantasytalking2/gates.",
            search_aliases=["tlpo gate", "fusion gate"],
            inputs=[io.Combo.Input("gate", options=folder_paths.get_filename_list(GATES))],
            outputs=[Gate.Output(display_name="gate")],
        )

    @classmethod
    def execute(cls, gate: str) -> io.NodeOutput:
        return io.NodeOutput(GateSource(find_file((GATES,), gate)))


class ManualGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2ManualGate",
            display_name="Manual Gate",
            category=CATEGORY,
            description="Weights by hand, for any LoRAs: a constant, a curve over steps, a ramp over blocks, a table.",
            search_aliases=["lora schedule", "lora strength per step", "lora block weight", "keyframes"],
            inputs=[
                io.Combo.Input("form", options=list(FORMS)),
                io.String.Input(
                    "weights", multiline=True, default="1",
                    tooltip="constant: 0.3, 0.5 or lips=0.5 | curve: motion=1,0.6,0.2; lips=1 | ramp: motion=1..0 | "
                    "table: a header (step, block, names) and rows",
                ),
                *schedule_inputs(),
                io.Sigmas.Input("sigmas", optional=True, tooltip="what steps count, instead of steps and shift"),
            ],
            outputs=[Gate.Output(display_name="gate")],
        )  # fmt: skip

    @classmethod
    def execute(cls, form: str, weights: str, steps: int, shift: float, sigmas=None) -> io.NodeOutput:
        kind, text = FORMS[form], weights.strip().removeprefix(f"{FORMS[form]}:")
        if kind == "table":
            text += "\n"  # says that it is no file's name
        else:
            text = ";".join(line for line in text.splitlines() if line.strip())
        return io.NodeOutput(
            GateSource(f"{kind}:{text}", schedule(steps, shift) if sigmas is None else sigmas.double().cpu())
        )


class ApplyGatedExperts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2ApplyGatedExperts",
            display_name="Apply Gated Experts",
            category=CATEGORY,
            description="Runs a Wan model with experts, weighed per block and timestep. Without a gate each counts 1.",
            search_aliases=["tlpo", "lora per block", "lora per step", "gated lora", "mixture of loras"],
            inputs=[
                io.Model.Input("model"),
                Experts.Input("experts"),
                io.Combo.Input(
                    "strategy", options=list(STRATEGIES), tooltip="how they are computed, not what", advanced=True
                ),
                Gate.Input("gate", optional=True),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, experts, strategy: str, gate: GateSource | None = None) -> io.NodeOutput:
        with torch.inference_mode(False):
            host = native_host(model)
            bank, strengths = stack(experts, host)
            built = gate_of(gate, bank.hashes, host)
            if gate is not None and gate.sigmas is None and (warning := base_warning(built, host)):
                logging.warning(f"FantasyTalking2: {Path(gate.text).name}: {warning}")
            return io.NodeOutput(ExpertPatch(bank, built, strengths, strategy).hang(model))


def stack(experts: tuple[ChosenExpert, ...], host: Host) -> tuple[ExpertBank, Tensor]:
    """The bank of the experts and their strengths [E]. Raises UserError for experts of another model."""
    bank = ExpertBank.stack([chosen.expert for chosen in experts], with_audio_linears(host, experts))
    return bank, torch.tensor([chosen.strength for chosen in experts])


def with_audio_linears(host: Host, experts: tuple[ChosenExpert, ...]) -> Host:
    """The host with audio linears as the experts' twins have them: ComfyUI's model has none, its adapter does."""
    twins = {
        address: nn.Linear(pair.A.shape[1], host.dim, bias=False, device="meta")
        for chosen in experts
        for address, pair in chosen.expert.pairs.items()
        if address.endswith(AUDIO_LINEARS) and split_address(address)[0] < host.num_blocks
    }
    names = [f"blocks.{block}.{name}" for block in range(host.num_blocks) for name in LINEARS + AUDIO_LINEARS]
    found = {**host.linears, **twins}
    linears = {name: found[name] for name in names if name in found}
    return Host(host.model, linears, host.time_embedding, host.blocks)


def gate_of(gate: GateSource | None, hashes: dict[str, str], host: Host) -> nn.Module:
    """The gate that is connected, or weights of 1."""
    ones = GateSource("constant:" + ",".join("1" for _ in hashes), schedule())
    return (gate or ones).build(hashes, host)


class GatePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2GatePlot",
            display_name="Gate Plot",
            category=CATEGORY,
            description="Draws what a gate gives each expert, block by step.",
            search_aliases=["gate heat map", "visualize gate"],
            inputs=[
                io.Model.Input("model"),
                Experts.Input("experts"),
                Gate.Input("gate"),
                *schedule_inputs(),
                io.Sigmas.Input("sigmas", optional=True, tooltip="the steps to draw, instead of steps and shift"),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, model, experts, gate: GateSource, steps: int, shift: float, sigmas=None) -> io.NodeOutput:
        host = native_host(model)
        bank, strengths = stack(experts, host)
        sigmas = schedule(steps, shift) if sigmas is None else sigmas.double().cpu()
        built, times = gate_of(gate, bank.hashes, host), timestep(sigmas[:-1]).float()
        weight = next(host.time_embedding.parameters())
        t_emb = embed_times(host.model, times.to(weight.device), model.model.get_dtype_inference()).cpu()
        picture = draw_gate(built(t_emb, times) * strengths, bank.names, sigmas)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return io.NodeOutput(pixels.view(1, picture.height, picture.width, 3).float() / 255)


NODES = [LoadExperts, LoadGate, ManualGate, ApplyGatedExperts, GatePlot]
