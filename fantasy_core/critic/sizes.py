"""How large a Thinker is, from its config.json alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .thinker import LINEARS, thinker_config


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights: all, of the language model's blocks, of the encoders. linears: inputs and outputs, added up,
    of the linears that an adapter is on: as many weights as it has for each of its ranks."""

    total: int
    language: int
    vision: int
    audio: int
    linears: int


def sizes_of(folder: Path) -> Sizes:
    """Counted from config.json, without a weight being read. Raises UserError as `load_thinker`."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config(folder))

    def count(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    linears = [one for name, one in model.named_modules() if re.fullmatch(LINEARS, name)]
    around = sum(one.in_features + one.out_features for one in linears)
    parts = (model.model.language_model.layers, model.model.visual, model.model.audio_tower)
    return Sizes(count(model), *map(count, parts), around)
