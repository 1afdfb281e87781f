"""Encoder weights under the names of transformers and diffusers, from the official, diffusers and ComfyUI files.

Sizes are read from the shapes, so no configuration file is needed; what shapes cannot tell is fixed by the models
(UMT5: buckets up to distance 128, gated GELU; CLIP ViT-H/14: heads 80 wide, GELU).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch

from ..errors import UserError, some
from .files import Lazy, TensorSet, open_tensors
from .fp8 import dequantised, refuse_integers
from .kinds import kind

UMT5_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
CLIP_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
CLIP_OUTER = {
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "pre_norm.weight": "pre_layrnorm.weight",
    "pre_norm.bias": "pre_layrnorm.bias",
    "post_norm.weight": "post_layernorm.weight",
    "post_norm.bias": "post_layernorm.bias",
}
CLIP_UNUSED = ("textual.", "log_scale", "head", "visual_projection.", "embeddings.position_ids")
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")


def open_text(path: str | Path) -> tuple[TensorSet, bytes | None]:
    """UMT5's encoder under the names of UMT5EncoderModel, and the SentencePiece model if the file holds one."""
    tensors = dequantised(open_tensors(path))
    entries = dict(tensors.entries)
    spiece = entries.pop("spiece_model", None)
    if "token_embedding.weight" in entries:
        entries = {_umt5_name(name): lazy for name, lazy in entries.items()}
    table = next((entries[name] for name in EMBEDDINGS if name in entries), None)
    if table is None or "encoder.final_layer_norm.weight" not in entries:
        expected = "token_embedding.weight (official) or shared.weight (transformers)"
        raise _mistaken(tensors, "UMT5 text encoder", expected)
    entries |= dict.fromkeys(EMBEDDINGS, table)
    model = None if spiece is None else bytes(spiece.read().flatten().tolist())
    return refuse_integers(TensorSet(tensors.path, entries, tensors.metadata)), model


def _umt5_name(name: str) -> str:
    """`blocks.N.attn.q.weight` -> `encoder.block.N.layer.0.SelfAttention.q.weight`; unknown names stay."""
    outer = {"token_embedding.weight": EMBEDDINGS[0], "norm.weight": "encoder.final_layer_norm.weight"}
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in UMT5_NAMES:
        return f"encoder.block.{found[1]}.{UMT5_NAMES[found[2]]}.weight"
    return outer.get(name, name)


def text_sizes(tensors: TensorSet) -> dict:
    """Arguments of UMT5Config, from the shapes."""
    shapes = {name: lazy.shape for name, lazy in tensors.entries.items()}
    first = "encoder.block.0.layer."
    try:
        buckets, heads = shapes[first + "0.SelfAttention.relative_attention_bias.weight"]
        inner, d_ff = shapes[first + "0.SelfAttention.q.weight"][0], shapes[first + "1.DenseReluDense.wi_0.weight"][0]
    except KeyError as error:
        raise _mistaken(tensors, "UMT5 text encoder", f"{error.args[0]}") from error
    vocabulary, width = shapes[EMBEDDINGS[0]]
    sizes = {"vocab_size": vocabulary, "d_model": width, "d_ff": d_ff, "num_heads": heads, "d_kv": inner // heads}
    return {
        **sizes,
        "num_layers": _count(shapes, r"encoder\.block\.(\d+)\."),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "dropout_rate": 0.0,
    }


def open_clip(path: str | Path) -> TensorSet:
    """CLIP's image tower under the names of CLIPVisionModel, without the prefix `vision_model.`."""
    tensors = dequantised(open_tensors(path))
    entries: dict[str, Lazy] = {}
    for name, lazy in tensors.entries.items():
        short = name.removeprefix("visual.").removeprefix("vision_model.")
        if not short.startswith(CLIP_UNUSED):
            entries.update(_clip_tensors(short, lazy))
    if "embeddings.class_embedding" not in entries:
        raise _mistaken(tensors, "CLIP image encoder", "visual.cls_embedding (official) or vision_model.embeddings...")
    return refuse_integers(TensorSet(tensors.path, entries, tensors.metadata))


def _clip_tensors(name: str, lazy: Lazy) -> dict[str, Lazy]:
    """The tensors of CLIPVisionModel that one tensor of OpenCLIP becomes: `to_qkv` holds three of them."""
    if name in CLIP_OUTER:
        leading = {"pos_embedding": 1, "cls_embedding": 2}.get(name, 0)  # axes of size 1 that transformers leaves out
        shape = lazy.shape[leading:]
        return {CLIP_OUTER[name]: Lazy(shape, lazy.dtype, partial(_shaped, lazy, shape))}
    found = re.fullmatch(r"transformer\.(\d+)\.(.+)\.(weight|bias)", name)
    if not found:
        return {name: lazy}
    layer = f"encoder.layers.{found[1]}."
    if found[2] == "attn.to_qkv":
        shape = (lazy.shape[0] // 3, *lazy.shape[1:])
        return {
            f"{layer}self_attn.{which}_proj.{found[3]}": Lazy(shape, lazy.dtype, partial(_third, lazy, index))
            for index, which in enumerate("qkv")
        }
    return {f"{layer}{CLIP_NAMES.get(found[2], found[2])}.{found[3]}": lazy}


def _shaped(lazy: Lazy, shape: tuple[int, ...]) -> torch.Tensor:
    return lazy.read().reshape(shape)


def _third(lazy: Lazy, index: int) -> torch.Tensor:
    return lazy.read().chunk(3)[index]


def clip_sizes(tensors: TensorSet) -> dict:
    """Arguments of CLIPVisionConfig, from the shapes; heads as in ViT-H/14, 80 wide."""
    shapes = {name: lazy.shape for name, lazy in tensors.entries.items()}
    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise _mistaken(tensors, "CLIP image encoder", f"{error.args[0]}") from error
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // 80),
        "patch_size": patch,
        "image_size": patch * round((positions - 1) ** 0.5),
        "hidden_act": "gelu",
    }


def open_vae(path: str | Path) -> TensorSet:
    """The Wan2.1 VAE under the names of AutoencoderKLWan; official names go through diffusers' own converter."""
    tensors = refuse_integers(dequantised(open_tensors(path)))
    if "encoder.conv1.weight" in tensors.entries:
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        tensors = TensorSet(tensors.path, convert_wan_vae_to_diffusers(dict(tensors.entries)), tensors.metadata)
    if "encoder.conv_in.weight" not in tensors.entries or "post_quant_conv.weight" not in tensors.entries:
        raise _mistaken(tensors, "Wan2.1 VAE", "encoder.conv1.weight (official) or encoder.conv_in.weight (diffusers)")
    return tensors


def _count(names, pattern: str) -> int:
    return 1 + max(int(found[1]) for found in map(re.compile(pattern).match, names) if found)


def _mistaken(tensors: TensorSet, what: str, expected: str) -> UserError:
    found = kind(tensors.entries)
    return UserError(
        f"{tensors.path} is not a {what}",
        got=(f"{found}; " if found else "") + f"its tensors begin with {some(tensors.entries, 3) or 'nothing'}",
        expected=expected,
        do=f"give the file of the {what}",
    )
