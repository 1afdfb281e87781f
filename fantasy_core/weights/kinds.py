"""What a weight file is, told from its tensor names, so that a mistaken path can be answered with the right name."""

from __future__ import annotations

import re
from collections.abc import Iterable

LORA = re.compile(
    r"\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_linear_layer\.(down|up)"
    r"|hada_w\d_[ab]|lokr_w\d(_[ab])?|dora_scale|diff_b)(\.|$)"
)
FANTASYTALKING = re.compile(r"^proj_model\.|^audio_processor\.|cross_attn\.(processor\.)?k_proj\.weight|^proj\.weight")
GATE = re.compile(r"(^|\.)gate\.(weight|bias|logits|slope)$|^table$")
TEXT = re.compile(r"(^|\.)(token_embedding|shared|encoder\.embed_tokens)\.weight|\.SelfAttention\.q\.")
KINDS = (
    ("a LoRA", LORA),
    ("a fusion gate", GATE),
    ("an image encoder (CLIP)", re.compile(r"(^|\.)(cls_embedding|class_embedding)$")),
    ("a Wan transformer", re.compile(r"^(model\.)?(diffusion_model\.)?patch_embedding\.weight$")),
    ("FantasyTalking's audio weights", FANTASYTALKING),
    ("a text encoder (UMT5)", TEXT),
    ("a video autoencoder (VAE)", re.compile(r"^(encoder|decoder)\.(conv1|conv_in)\.weight|^post_quant_conv\.")),
)


def kind(names: Iterable[str]) -> str | None:
    """One of `KINDS` (`a LoRA`, `a Wan transformer`, ...) or None for names that none of them has."""
    names = list(names)
    return next((label for label, pattern in KINDS if any(map(pattern.search, names))), None)
