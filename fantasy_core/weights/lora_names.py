"""Names in LoRA files: which linear of which block a tensor belongs to, in every naming in use. Pure string maps.

| dialect  | example |
|---|---|
| ComfyUI   | `diffusion_model.blocks.3.self_attn.q.lora_A.weight` (ours too), or `.lora_down.weight` and `.alpha` |
| kohya     | `lora_unet_blocks_3_self_attn_q.lora_down.weight` and `.alpha` (musubi-tuner; two underscores: Wan-Fun) |
| diffusers | `transformer.blocks.3.attn1.to_q.lora_A.weight`, or `.lora_A.default.weight`, or `.lora.down.weight` |
| peft      | `base_model.model.blocks.3.self_attn.q.lora_A.weight`, official or diffusers' names |
| bare      | `blocks.3.self_attn.q.lora_A.weight`, official or diffusers' names |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .names import BLOCK

PREFIXES = {
    "base_model.model.": "peft",
    "model.diffusion_model.": "ComfyUI",
    "diffusion_model.": "ComfyUI",
    "transformer.": "diffusers",
    "pipe.dit.": "DiffSynth",
    "lora_unet__": "kohya",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya",
    "lycoris_": "kohya",
}
OFFICIAL = {name: name for name in BLOCK if "norm" not in name and name != "modulation"}  # the 14 linears of a block
TABLES = {"official": OFFICIAL, "diffusers'": {BLOCK[name]: name for name in OFFICIAL}}
# A dot may have become an underscore, and names hold underscores of their own: only a table tells which is which.
UNDERSCORED = {
    names: {theirs.replace(".", "_"): ours for theirs, ours in table.items()} for names, table in TABLES.items()
}
MODULE = re.compile(r"blocks([._])(\d+)\1(.+)")
ROLES = {
    "A": re.compile(r"(.+)\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.[^.]+)?\.weight"),
    "B": re.compile(r"(.+)\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.[^.]+)?\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}
REASONS = {  # what a tensor is that no low-rank change can hold; the first that fits
    "text encoder": re.compile(r"^(lora_te|text_encoder)"),
    "DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
    "LoKr": re.compile(r"\.lokr_"),
    "LoHa": re.compile(r"\.hada_"),
    "OFT": re.compile(r"[._]b?oft_"),
    "norms": re.compile(r"(^|[._])norm"),
    "modulation": re.compile(r"\.diff_m$"),
    "biases": re.compile(r"\.diff_b$|\.lora_(B|up)(\.[^.]+)?\.bias$"),
    "full weights": re.compile(r"\.diff$"),
    "linears outside the blocks": re.compile(
        r"(text_embedding|time_embedding|time_projection|img_emb|patch_embedding|head|condition_embedder|proj_out)[._]"
    ),
    "scales without a pair": re.compile(r"\.alpha$"),
}
FAMILIES = {  # models whose LoRAs are mistaken for Wan's
    "FLUX or HunyuanVideo": re.compile(r"(^|[._])(double|single)_blocks[._]|single_transformer_blocks"),
    "Stable Diffusion or SDXL": re.compile(r"lora_te\d?_|(^|[._])(down|up|input|output|middle|mid)_blocks?[._]"),
    "Stable Diffusion 3": re.compile(r"joint_blocks"),
    "LTX-Video, CogVideoX, Qwen-Image or another with `transformer_blocks`": re.compile(r"transformer_blocks"),
    "a language model": re.compile(r"(^|\.)layers\.\d+\.(self_attn|mlp)\."),
}


class Key(NamedTuple):
    """What a tensor of a LoRA is: its role (A, B, alpha), the linear's address, its module as written, the dialect."""

    role: str
    address: str
    module: str
    dialect: str


def parse(name: str) -> Key | None:
    """`lora_unet_blocks_3_ffn_0.alpha` -> ("alpha", "blocks.3.ffn.0", ...); None for all that is no change of a
    linear of a block."""
    for role, pattern in ROLES.items():
        if match := pattern.fullmatch(name):
            module, prefix = _without_prefixes(match[1])
            linear = _linear(module)
            return linear and Key(role, linear[0], module, _dialect(prefix, linear[1]))
    return None


def _without_prefixes(module: str) -> tuple[str, str]:
    """The module without its prefixes (peft's may stand before another), and the dialect of the first."""
    dialect = "bare"
    while prefix := next((prefix for prefix in PREFIXES if module.startswith(prefix)), None):
        module, dialect = module.removeprefix(prefix), PREFIXES[prefix] if dialect == "bare" else dialect
    return module, dialect


def _linear(module: str) -> tuple[str, str] | None:
    """Official address of a linear of a block and whose names it had; None for any other module."""
    match = MODULE.fullmatch(module)
    if match:
        for names, table in (TABLES if match[1] == "." else UNDERSCORED).items():
            if match[3] in table:
                return f"blocks.{int(match[2])}.{table[match[3]]}", names
    return None


def _dialect(prefix: str, names: str) -> str:
    """`peft`, or `peft with diffusers' names` where the names are not those that the prefix lets expect."""
    usual = "diffusers'" if prefix == "diffusers" else "official"
    return prefix if names == usual else f"{prefix} with {names} names"


def reasons(names: Iterable[str]) -> dict[str, list[str]]:
    """Unsupported tensors by what they are: DoRA, LoKr, biases, ...; `unknown` for the rest."""
    found: dict[str, list[str]] = {}
    for name in names:
        reason = next((reason for reason, pattern in REASONS.items() if pattern.search(name)), "unknown")
        found.setdefault(reason, []).append(name)
    return found


def family(names: Iterable[str]) -> str | None:
    """Which other model a LoRA is for, as far as its names tell."""
    names = list(names)
    return next((label for label, pattern in FAMILIES.items() if any(map(pattern.search, names))), None)
