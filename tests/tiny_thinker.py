"""A whole Omni checkpoint around the miniature's Thinker, as the hub lays it out."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fantasy_core.weights import open_tensors
from train.miniature_thinker import save_thinker, thinker, tokenizer

__all__ = ["save_omni", "thinker", "tokenizer"]


def save_omni(folder: Path, seed: int = 0, talker: bool = True, **sizes: int) -> Path:
    """thinker., talker. and token2wav. keys in two shards and an index (`talker` False: the second shard was never
    fetched), config.json with a thinker_config, the tokenizer."""
    from safetensors.torch import save_file

    whole = save_thinker(folder, seed, **sizes) / "model.safetensors"
    tensors = {name: entry.read() for name, entry in open_tensors(whole).entries.items()}
    whole.unlink()
    rest = {"talker.codec_head.weight": torch.zeros(2, 2), "token2wav.code2wav_dit_model.proj.weight": torch.zeros(2)}
    files = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": rest}
    for name, held in files.items():
        if talker or held is tensors:
            save_file(held, folder / name, metadata={"format": "pt"})
    index = {key: name for name, held in files.items() for key in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    told = json.loads((folder / "config.json").read_text())
    told |= {"architectures": ["Qwen2_5OmniModel"], "enable_audio_output": True}
    (folder / "config.json").write_text(json.dumps(told))
    return folder
