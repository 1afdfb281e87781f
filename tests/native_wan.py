"""Small Wan models, adapters, experts and gates in the files that ComfyUI's native loaders and our nodes read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_dits import random_dit
from small_experts import random_expert

from fantasy_core.audio import AudioProjection
from fantasy_core.expert_files import save_expert
from fantasy_core.experts import ExpertBank
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS
from fantasy_core.gate import FusionGate
from fantasy_core.gate_files import save_gate
from fantasy_core.wan import WanConfig, WanDiT

# heads 128 wide and CLIP 1280 wide, as ComfyUI's loader takes for granted; all else small
CONFIG = WanConfig(256, 384, 2, 3, 36, 16, 64, 256, 7, (1, 2, 2), 1280, 24, 32, 1e-6)
METADATA = {"config": json.dumps({"transformer": {"text_dim": CONFIG.text_dim}})}
NAMES, RANKS = ("mn", "ls", "vq"), (4, 2, 3)


def native_dit(seed: int = 0) -> WanDiT:
    return random_dit(CONFIG, seed)


def audio_projection() -> AudioProjection:
    torch.manual_seed(5)
    projection = AudioProjection(CONFIG.audio_dim, CONFIG.audio_token_dim)
    projection.norm.weight.data.uniform_(0.5, 1.5)
    return projection.requires_grad_(False)


def native_bank(dit: WanDiT) -> ExpertBank:
    """Three experts on all 14 linears."""
    pairs = zip(NAMES, RANKS, strict=True)
    experts = [
        random_expert(dit, name, rank, seed=i, linears=LINEARS + AUDIO_LINEARS) for i, (name, rank) in enumerate(pairs)
    ]
    return ExpertBank.stack(experts, dit)


def native_gate(dit: WanDiT) -> FusionGate:
    """A gate whose weights differ between blocks and timesteps."""
    generator = torch.Generator().manual_seed(9)
    gate = FusionGate(dit.config.num_layers, dit.config.dim, 3, names=NAMES).requires_grad_(False)
    gate.weight.copy_(torch.randn(gate.weight.shape, generator=generator) * 0.4)
    gate.bias.copy_(torch.randn(gate.bias.shape, generator=generator) * 0.2)
    return gate


def base_state(dit: WanDiT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in dit.state_dict().items() if ".processor." not in name}


def write_files(folder: Path) -> None:
    """base, adapter, mn, ls, vq (with their audio twins), gate, and a LoRA of fixed strength."""
    dit = native_dit()
    save_file(base_state(dit), folder / "base.safetensors", METADATA)
    audio = {f"proj_model.{name}": tensor for name, tensor in audio_projection().state_dict().items()}
    for name, tensor in dit.state_dict().items():
        if ".processor." in name:
            audio[f"audio_processor.{name}"] = tensor.clone()
    save_file(audio, folder / "adapter.safetensors")
    bank = native_bank(dit)
    for name in NAMES:
        save_expert(folder / f"{name}.safetensors", bank.expert(name))
    save_gate(folder / "gate.safetensors", native_gate(dit), hashes=bank.hashes, host=dit)
    save_expert(folder / "static.safetensors", random_expert(dit, "static", 3, seed=77))


def quantised(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The blocks' linears as ComfyUI's tensor-wise int8, and the weights that they stand for."""
    stored, meant = dict(state), dict(state)
    told = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    for name, weight in state.items():
        if name.startswith("blocks.") and weight.ndim == 2:
            scale = weight.abs().max() / 127
            stored[name] = (weight / scale).round().to(torch.int8)
            stored[name.removesuffix("weight") + "weight_scale"] = scale.clone()
            stored[name.removesuffix("weight") + "comfy_quant"] = told.clone()
            meant[name] = stored[name].float() * scale
    return stored, meant


def scaled_down(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The blocks' linears stored in fewer bits, as plain fp8 and bf16 files hold them."""
    narrow = {name for name in state if name.startswith("blocks.") and name.endswith(".weight")}
    return {name: tensor.to(dtype) if name in narrow and tensor.ndim == 2 else tensor for name, tensor in state.items()}


def without_clip(config: WanConfig = CONFIG) -> WanConfig:
    return replace(config, clip_dim=0)
