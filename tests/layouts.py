"""Writes tiny Wan2.1 models in exactly the layouts in which the real ones are published.

Names are spelled here from the published code, independently of the loaders under test. `Tiny` holds one set of small
real models; every writer stores the same weights.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from layout_names import State, official_clip, official_text, official_vae, prefixed_clip
from safetensors.torch import save_file
from torch import Tensor, nn

from fantasy_core.wan import PRESETS, WanConfig, WanDiT
from fantasy_core.weights.names import to_diffusers

CONFIG = replace(PRESETS["tiny"], text_len=512)
SENTENCES = ("a woman is talking in a room", "a man with a hat sings a song", "faces and voices, light and shadow")


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters random at a moderate scale (zero-initialised ones would hide mistakes), frozen."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) * fan**-0.5
    return module.requires_grad_(False).eval()


def tiny_dit(config: WanConfig = CONFIG, *, audio: bool = True) -> WanDiT:
    return randomised(WanDiT(config if audio else replace(config, audio_dim=0, audio_token_dim=0)))


def tiny_text():
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return randomised(UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)))


def tiny_clip():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 160, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"image_size": 28, "patch_size": 14, "projection_dim": 24, "hidden_act": "gelu"}
    return randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)))


def tiny_vae():
    from diffusers import AutoencoderKLWan

    return randomised(AutoencoderKLWan(base_dim=4))


def spiece_model() -> bytes:
    """A SentencePiece model with UMT5's special tokens: 0 pad, 1 end, 2 unknown."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 4), model_writer=model, vocab_size=48, **special)
    return model.getvalue()


def write_tokenizer(folder: Path) -> Path:
    from transformers import AutoTokenizer

    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(spiece_model())
    config = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "extra_ids": 0}))
    AutoTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(folder)  # adds tokenizer.json
    return folder


@dataclass
class Tiny:
    """One small model of each part, and the three layouts of all of them."""

    dit: WanDiT
    text: nn.Module
    clip: nn.Module
    vae: nn.Module

    @classmethod
    def make(cls) -> Tiny:
        return cls(tiny_dit(audio=False), tiny_text(), tiny_clip(), tiny_vae())

    def write_official(self, folder: Path, shards: int = 2) -> Path:
        folder.mkdir(parents=True)
        write_official_dit(folder, self.dit, shards)
        torch.save(official_text(self.text), folder / "models_t5_umt5-xxl-enc-bf16.pth")
        torch.save(official_clip(self.clip), folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
        torch.save(official_vae(self.vae), folder / "Wan2.1_VAE.pth")
        write_tokenizer(folder / "google" / "umt5-xxl")
        return folder

    def write_diffusers(self, folder: Path) -> Path:
        write_diffusers_dit(folder / "transformer", self.dit)
        self.text.save_pretrained(folder / "text_encoder")
        self.clip.save_pretrained(folder / "image_encoder")
        self.vae.save_pretrained(folder / "vae")
        write_tokenizer(folder / "tokenizer")
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanImageToVideoPipeline"}))
        return folder

    def write_comfy(self, models: Path, form: str = "fp16") -> Path:
        """A ComfyUI `models` folder; returns the transformer's file."""
        file = models / "diffusion_models" / "wan2.1_i2v_480p_14B_tiny.safetensors"
        for name in ("diffusion_models", "text_encoders", "clip_vision", "vae"):
            (models / name).mkdir(parents=True)
        write_comfy_dit(file, self.dit, form)
        text = {name: tensor for name, tensor in self.text.state_dict().items() if "embed_tokens" not in name}
        text["spiece_model"] = torch.frombuffer(bytearray(spiece_model()), dtype=torch.uint8)
        save_file(text, models / "text_encoders" / "umt5_xxl_fp16.safetensors")
        save_file(prefixed_clip(self.clip), models / "clip_vision" / "clip_vision_h.safetensors")
        save_file(official_vae(self.vae), models / "vae" / "wan_2.1_vae.safetensors")
        return file


def config_json(config: WanConfig) -> str:
    """config.json of the official folder."""
    keys = ("dim", "eps", "ffn_dim", "freq_dim", "in_dim", "num_heads", "num_layers", "out_dim", "text_len")
    model_type = "i2v" if config.clip_dim else "t2v"
    told = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": model_type}
    return json.dumps({**told, **{key: getattr(config, key) for key in keys}})


def write_official_dit(folder: Path, dit: WanDiT, shards: int = 2, stem: str = "diffusion_pytorch_model") -> None:
    """config.json and one safetensors, or numbered shards with their index."""
    (folder / "config.json").write_text(config_json(dit.config))
    write_shards(folder, stem, dit.state_dict(), shards)


def write_shards(folder: Path, stem: str, state: State, shards: int) -> None:
    if shards == 1:
        save_file(state, folder / f"{stem}.safetensors")
        return
    names, weight_map = list(state), {}
    for part in range(shards):
        file = f"{stem}-{part + 1:05d}-of-{shards:05d}.safetensors"
        weight_map |= dict.fromkeys(names[part::shards], file)
        save_file({name: state[name] for name in names[part::shards]}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_diffusers_dit(folder: Path, dit: WanDiT) -> None:
    """The transformer of diffusers with the same weights, saved by diffusers in several shards."""
    from diffusers import WanTransformer3DModel

    config = dit.config
    sizes = {"num_attention_heads": config.num_heads, "attention_head_dim": config.head_dim, "eps": config.eps}
    sizes |= {"in_channels": config.in_dim, "out_channels": config.out_dim, "num_layers": config.num_layers}
    sizes |= {"text_dim": config.text_dim, "freq_dim": config.freq_dim, "ffn_dim": config.ffn_dim}
    if config.clip_dim:
        sizes |= {"image_dim": config.clip_dim, "added_kv_proj_dim": config.dim}
    model = WanTransformer3DModel(**sizes)
    model.load_state_dict({to_diffusers(name): tensor for name, tensor in dit.state_dict().items()}, strict=True)
    model.save_pretrained(folder, max_shard_size="800KB")


def write_comfy_dit(file: Path, dit: WanDiT, form: str = "fp16", prefix: str = "diffusion_model.") -> State:
    """One file as ComfyUI loads it; returns the weights that a loader must give back, under official names.

    Forms: fp16, bf16, fp32; fp8 (e4m3fn) and e5m2: linears cast, no scale; scaled: `scale_weight`, `scale_input` and
    the marker `scaled_fp8`; comfy_quant: `weight_scale` and `comfy_quant`; rows: the same with a scale for each row.
    """
    plain = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    stored, truth = {}, {}
    for name, tensor in dit.state_dict().items():
        linear = tensor.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight")
        if form in plain or not linear:
            stored[name] = tensor.to(plain.get(form, torch.float16))
            truth[name] = stored[name].float()
        else:
            extra, truth[name] = as_fp8(name, tensor, form)
            stored |= extra
    if form == "scaled":
        stored["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn).zero_()
    metadata = {"config": json.dumps({"transformer": {"num_heads": dit.config.num_heads}})}
    save_file({prefix + name: tensor for name, tensor in stored.items()}, file, metadata)
    return truth


def as_fp8(name: str, tensor: Tensor, form: str) -> tuple[State, Tensor]:
    layer = name.removesuffix(".weight")
    if form in ("fp8", "e5m2"):
        stored = tensor.to(torch.float8_e5m2 if form == "e5m2" else torch.float8_e4m3fn)
        return {name: stored}, stored.float()
    scale = tensor.abs().amax(1) / 448 if form == "rows" else tensor.abs().max() / 448
    column = scale[:, None] if form == "rows" else scale
    stored = (tensor / column).to(torch.float8_e4m3fn)
    if form == "scaled":
        extra = {f"{layer}.scale_weight": scale.reshape(1), f"{layer}.scale_input": torch.ones(1)}
    else:
        text = json.dumps({"format": "float8_e4m3fn"}).encode()
        extra = {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}
    return {name: stored, **extra}, stored.float() * column


FANTASY_DIALECTS = {  # dialect: (prefix of the projection, prefix of the linears, what follows cross_attn)
    "official": ("proj_model.", "audio_processor.", ".processor"),
    "bare linears": ("proj_model.", "", ".processor"),
    "without processor": ("proj_model.", "", ""),
    "split": ("", None, ""),
}


def fantasytalking_state(dit: WanDiT, dialect: str = "official", seed: int = 5) -> State:
    """Projection (random) and linears (those of `dit`, built with audio) under the names of one dialect."""
    outer, prefix, middle = FANTASY_DIALECTS[dialect]
    config, generator = dit.config, torch.Generator().manual_seed(seed)
    shapes = {"proj.weight": (config.audio_token_dim, config.audio_dim), "norm.weight": (config.audio_token_dim,)}
    shapes["norm.bias"] = shapes["norm.weight"]
    state = {outer + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if prefix is not None:
        for name, tensor in dit.state_dict().items():
            if ".processor." in name:
                state[prefix + name.replace(".processor", middle)] = tensor
    return state


def write_fantasytalking_ckpt(path: Path, dit: WanDiT) -> Path:
    """The nested torch dict of fantasytalking_model.ckpt."""
    state, nested = fantasytalking_state(dit), {"proj_model": {}, "audio_processor": {}}
    for name, tensor in state.items():
        outer, inner = name.split(".", 1)
        nested[outer][inner] = tensor
    torch.save(nested, path)
    return path
