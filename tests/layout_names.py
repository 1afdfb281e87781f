"""Small real encoders under the names of the published files, spelled from the published code (wan/modules/*.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
VAE_RESIDUALS = {"encoder": (0, 1, 3, 4, 6, 7, 9, 10), "decoder": (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14)}
VAE_SHORTCUTS = {"encoder": (3, 6), "decoder": (4,)}
VAE_RESAMPLERS = {"encoder": {2: False, 5: True, 8: True}, "decoder": {3: True, 7: True, 11: False}}  # True: time too


def official_text(text: nn.Module) -> State:
    """UMT5's encoder with the names of wan/modules/t5.py."""
    state = text.state_dict()
    official = {"token_embedding.weight": state["shared.weight"]}
    official["norm.weight"] = state["encoder.final_layer_norm.weight"]
    for n in range(text.config.num_layers):
        ours, theirs = f"blocks.{n}.", f"encoder.block.{n}.layer."
        official[f"{ours}norm1.weight"] = state[f"{theirs}0.layer_norm.weight"]
        official[f"{ours}norm2.weight"] = state[f"{theirs}1.layer_norm.weight"]
        bias = state[f"{theirs}0.SelfAttention.relative_attention_bias.weight"]
        official[f"{ours}pos_embedding.embedding.weight"] = bias
        for which in "qkvo":
            official[f"{ours}attn.{which}.weight"] = state[f"{theirs}0.SelfAttention.{which}.weight"]
        for own, other in (("gate.0", "wi_0"), ("fc1", "wi_1"), ("fc2", "wo")):
            official[f"{ours}ffn.{own}.weight"] = state[f"{theirs}1.DenseReluDense.{other}.weight"]
    return official


def clip_state(clip: nn.Module) -> State:
    return {name.removeprefix("vision_model."): tensor for name, tensor in clip.state_dict().items()}


def prefixed_clip(clip: nn.Module) -> State:
    """The names of clip_vision_h.safetensors."""
    return {n if n.startswith("visual_projection") else f"vision_model.{n}": t for n, t in clip_state(clip).items()}


def official_clip(clip: nn.Module) -> State:
    """The image tower with the names of wan/modules/clip.py, and a little of the text tower beside it."""
    state, official = clip_state(clip), {}
    official["visual.patch_embedding.weight"] = state["embeddings.patch_embedding.weight"]
    official["visual.cls_embedding"] = state["embeddings.class_embedding"][None, None]
    official["visual.pos_embedding"] = state["embeddings.position_embedding.weight"][None]
    for kind in ("weight", "bias"):
        official[f"visual.pre_norm.{kind}"] = state[f"pre_layrnorm.{kind}"]
        official[f"visual.post_norm.{kind}"] = state[f"post_layernorm.{kind}"]
        for n in range(clip.config.num_hidden_layers):
            ours, theirs = f"visual.transformer.{n}.", f"encoder.layers.{n}."
            qkv = [state[f"{theirs}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            official[f"{ours}attn.to_qkv.{kind}"] = torch.cat(qkv)
            pairs = (("attn.proj", "self_attn.out_proj"), ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2"))
            for own, other in (*pairs, ("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
                official[f"{ours}{own}.{kind}"] = state[f"{theirs}{other}.{kind}"]
    official["visual.head"] = state["visual_projection.weight"].T.contiguous()
    return official | {"log_scale": torch.tensor(2.66), "textual.token_embedding.weight": torch.randn(4, 8)}


def official_vae_names() -> list[str]:
    """The tensor names of wan/modules/vae.py for multipliers 1, 2, 4, 4 with two residual blocks."""
    names = ["conv1", "conv2"]
    gammas = []
    for side, samplers in (("encoder", "downsamples"), ("decoder", "upsamples")):
        names += [f"{side}.conv1", f"{side}.head.2", f"{side}.middle.1.to_qkv", f"{side}.middle.1.proj"]
        gammas += [f"{side}.head.0", f"{side}.middle.1.norm"]
        residuals = [f"{side}.middle.{n}" for n in (0, 2)] + [f"{side}.{samplers}.{n}" for n in VAE_RESIDUALS[side]]
        names += [f"{block}.residual.{n}" for block in residuals for n in (2, 6)]
        gammas += [f"{block}.residual.{n}" for block in residuals for n in (0, 3)]
        names += [f"{side}.{samplers}.{n}.shortcut" for n in VAE_SHORTCUTS[side]]
        names += [f"{side}.{samplers}.{n}.resample.1" for n in VAE_RESAMPLERS[side]]
        names += [f"{side}.{samplers}.{n}.time_conv" for n, in_time in VAE_RESAMPLERS[side].items() if in_time]
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")] + [f"{name}.gamma" for name in gammas]


def official_vae(vae: nn.Module) -> State:
    """The VAE with the names of wan/modules/vae.py (which name is which tensor: diffusers' converter)."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    state = vae.state_dict()
    named = convert_wan_vae_to_diffusers({name: name for name in official_vae_names()})
    return {official: state[name] for name, official in named.items()}
