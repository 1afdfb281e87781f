"""A Thinker of the miniature: Qwen2.5-Omni's layout in every name, a few hundred thousand random weights, and a
tokenizer that knows the critic's questions. It has learnt nothing: what its critic knows, train.critic taught it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fantasy_core.critic.asked import read_questions
from fantasy_core.media.files import replacing
from fantasy_core.pair_rules import DIMENSIONS

SPECIALS = (  # the hub's order from id 151643 on
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>",
)  # fmt: skip
MARKS = {  # what transformers' processor asks of a tokenizer
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
LARGEST = 2000  # words of the vocabulary
DECISIVE = 4.0  # how much larger than others the weights are that make words of the last state
CONTRAST = 4.0  # and those that see edges, and changes from frame to frame


@cache
def tokenizer() -> Any:
    """Byte pairs learnt on the questions themselves, so that their words are a token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner, letters = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    asked = read_questions()
    text = ["Yes", "No", asked.before, *map(asked.after, DIMENSIONS)] * 2
    inner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=LARGEST, min_frequency=2, initial_alphabet=letters, show_progress=False)
    )
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    told = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=MARKS, **told)


def config(hidden: int = 64, layers: int = 2, encoder: int = 32) -> Any:
    """Four heads, of which two for keys; the positions' sections in the hub's proportion."""
    from transformers import Qwen2_5OmniThinkerConfig

    ids, head = tokenizer().convert_tokens_to_ids, hidden // 4
    sections = [head // 8, 3 * head // 16, 3 * head // 16]
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer()), "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        },
        vision_config={
            "depth": 2, "hidden_size": encoder, "intermediate_size": 2 * encoder, "num_heads": 2, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
        },
        audio_config={
            "num_mel_bins": 128, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 2 * encoder,
            "d_model": encoder, "max_source_positions": 1500, "n_window": 100, "output_dim": hidden,
        },
        audio_token_index=ids("<|AUDIO|>"), image_token_index=ids("<|IMAGE|>"), video_token_index=ids("<|VIDEO|>"),
        audio_start_token_id=ids("<|audio_bos|>"), audio_end_token_id=ids("<|audio_eos|>"), user_token_id=ids("Y"),
        position_id_per_seconds=25, seconds_per_chunk=2,
        vision_start_token_id=ids("<|vision_bos|>"), vision_end_token_id=ids("<|vision_eos|>"),
    )  # fmt: skip


def thinker(seed: int = 0, **sizes: int) -> Any:
    """Random weights that pass on what they are given: as large as keeps numbers about 1 through every layer.
    (transformers begins with 0.02 everywhere, which at this width drowns clip and question in the residual stream, and
    leaves no room for a word to be likely.) The patches' filters see edges and changes, as trained ones do."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5OmniThinkerForConditionalGeneration(config(**sizes)).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = 1 if "embed_tokens" in name else parameter[0].numel()
                torch.nn.init.normal_(parameter, std=(DECISIVE if "lm_head" in name else 1) * fan_in**-0.5)
        filters = model.model.visual.patch_embed.proj.weight.detach()  # [d, 3, 2, 14, 14]
        edges, changes = filters[0::3], filters[1::3]
        edges[:, :, 1] = edges[:, :, 0]
        changes[:, :, 1] = -changes[:, :, 0]
        edges -= edges.mean((2, 3, 4), keepdim=True)
        edges *= CONTRAST
        changes *= CONTRAST
        return model


def save_thinker(folder: Path, seed: int = 0, **sizes: int) -> Path:
    """As a folder of Qwen2.5-Omni: config.json with a thinker_config, weights under thinker., the tokenizer."""
    from fantasy_core.weights import save_tensors

    folder.mkdir(parents=True, exist_ok=True)
    model = thinker(seed, **sizes)
    tensors = {f"thinker.{hub_name(name)}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    told = {"model_type": "qwen2_5_omni", "thinker_config": model.config.to_dict()}
    with replacing(folder / "config.json") as beside:
        beside.write_text(json.dumps(told, indent=1), "utf-8")
    tokenizer().save_pretrained(folder)
    return folder


def hub_name(name: str) -> str:
    """The names of the published files, which are older than transformers 5's modules."""
    for new, old in (("language_model.", ""), ("visual.", "visual."), ("audio_tower.", "audio_tower.")):
        if name.startswith(f"model.{new}"):
            return (old or "model.") + name.removeprefix(f"model.{new}")
    return name
