"""Names of the transformer's tensors: official Wan2.1 (WanDiT's and ComfyUI's too) and diffusers'. Pure string maps."""

from __future__ import annotations

# Beginnings of a name, official and diffusers'. The affine norm3 is diffusers' norm2; its norm3 has no tensors.
TOP = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "patch_embedding": "patch_embedding",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_AUDIO = {"processor.k_proj": "processor.k_proj", "processor.v_proj": "processor.v_proj"}
BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in {**_ATTENTION, **_IMAGE, **_AUDIO}.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}


def to_diffusers(name: str) -> str:
    """`blocks.3.self_attn.q.weight` -> `blocks.3.attn1.to_q.weight`; an unknown name comes back unchanged."""
    return _rename(name, TOP, BLOCK)


def from_diffusers(name: str) -> str:
    """`blocks.3.attn1.to_q.weight` -> `blocks.3.self_attn.q.weight`; an unknown name comes back unchanged."""
    return _rename(name, _inverse(TOP), _inverse(BLOCK))


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _rename(name: str, top: dict[str, str], block: dict[str, str]) -> str:
    """Rename the longest known beginning of `name`; in a block, of what follows its number. Any tail stays."""
    prefix, table, parts = "", top, name.split(".")
    if parts[0] == "blocks" and len(parts) > 2:
        prefix, table, parts = f"blocks.{parts[1]}.", block, parts[2:]
    for length in range(len(parts), 0, -1):
        known = table.get(".".join(parts[:length]))
        if known is not None:
            return prefix + ".".join([known, *parts[length:]])
    return name
