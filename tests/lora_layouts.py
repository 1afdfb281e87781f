"""Writes experts as LoRA files in every naming in use, spelled here independently of the loader under test."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasy_core.experts import Expert

DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    "cross_attn.processor.k_proj": "attn2.processor.k_proj", "cross_attn.processor.v_proj": "attn2.processor.v_proj",
}  # fmt: skip


def diffusers_name(address: str) -> str:
    """`blocks.3.ffn.0` -> `blocks.3.ffn.net.0.proj`."""
    _, block, name = address.split(".", 2)
    return f"blocks.{block}.{DIFFUSERS[name]}"


def underscored(address: str) -> str:
    return address.replace(".", "_")


AB, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
DIALECTS = {  # how a module is called, what A and B are called; whether the file tells alpha
    "ComfyUI": (lambda a: f"diffusion_model.{a}", AB, False),
    "ComfyUI, down and up": (lambda a: f"diffusion_model.{a}", DOWN_UP, True),
    "whole checkpoint": (lambda a: f"model.diffusion_model.{a}", AB, True),
    "kohya": (lambda a: f"lora_unet_{underscored(a)}", DOWN_UP, True),
    "Wan-Fun": (lambda a: f"lora_unet__{underscored(a)}", DOWN_UP, True),
    "OneTrainer": (lambda a: f"lora_transformer_{underscored(diffusers_name(a))}", DOWN_UP, True),
    "diffusers": (lambda a: f"transformer.{diffusers_name(a)}", AB, False),
    "diffusers, old": (lambda a: f"transformer.{diffusers_name(a)}", ("lora.down.weight", "lora.up.weight"), True),
    "adapter name": (lambda a: f"transformer.{diffusers_name(a)}", ("lora_A.mn.weight", "lora_B.mn.weight"), False),
    "DiffSynth": (lambda a: f"pipe.dit.{a}", ("lora_A.default.weight", "lora_B.default.weight"), False),
    "bare": (lambda a: a, AB, False),
    "bare, diffusers' names": (diffusers_name, AB, False),
    "peft": (lambda a: f"base_model.model.{a}", AB, False),
    "peft of diffusers": (lambda a: f"base_model.model.{diffusers_name(a)}", AB, False),
}


def lora_state(expert: Expert, dialect: str = "ComfyUI") -> dict[str, Tensor]:
    """The expert's tensors in a naming, alpha = scale * rank where the naming has it."""
    rename, (down, up), has_alpha = DIALECTS[dialect]
    state = {}
    for address, pair in expert.pairs.items():
        state[f"{rename(address)}.{down}"] = pair.A.clone()
        state[f"{rename(address)}.{up}"] = pair.B.clone()
        if has_alpha:
            state[f"{rename(address)}.alpha"] = torch.tensor(pair.scale * pair.rank)
    return state


def write_lora(folder: Path, expert: Expert, dialect: str = "ComfyUI", **settings) -> Path:
    """A file, or for peft a folder with adapter_config.json (`settings` override alpha); returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if not dialect.startswith("peft"):
        save_file(lora_state(expert, dialect), folder / f"{expert.name}.safetensors")
        return folder / f"{expert.name}.safetensors"
    pair = next(iter(expert.pairs.values()))
    config = {"peft_type": "LORA", "r": pair.rank, "lora_alpha": pair.scale * pair.rank, **settings}
    save_file(lora_state(expert, dialect), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
