"""Our layers on a GGUF model, through the public ComfyUI-GGUF pack, where it is at hand: COMFYUI_GGUF says where, else
it is looked for among ComfyUI's custom_nodes; ComfyUI's interpreter needs its `gguf` package."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import native_wan
import pytest
import torch
from comfyui import COMFYUI, inside_comfyui
from test_native_model import apart

from fantasy_core.audio import AudioTokens
from fantasy_core.fusion import attach

pytestmark = pytest.mark.comfy
PACK = Path(os.environ.get("COMFYUI_GGUF") or COMFYUI / "custom_nodes" / "ComfyUI-GGUF")


def test_experts_and_voice_on_a_quantised_model(tmp_path, monkeypatch):
    """Against the core with the weights that Q8_0 stands for: base, then voice and experts, then the base again."""
    if not (PACK / "loader.py").is_file():
        pytest.skip(f"no ComfyUI-GGUF at {PACK}; set COMFYUI_GGUF")
    config = replace(native_wan.CONFIG, text_dim=4096)  # what ComfyUI takes for granted without metadata
    monkeypatch.setattr(native_wan, "CONFIG", config)
    native_wan.write_files(tmp_path)
    generator = torch.Generator().manual_seed(3)
    sizes = {"latents": (1, 16, 3, 8, 8), "condition": (1, 20, 3, 8, 8), "text": (1, 7, 4096), "clip": (1, 257, 1280)}
    given = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    given |= {"tokens": torch.randn(1, 3, 6, config.audio_token_dim), "lengths": torch.tensor([[2, 6, 5]])}
    given |= {"scale": torch.ones(1), "timestep": torch.tensor([600.5])}
    torch.save(given, tmp_path / "inputs.pt")
    found = inside_comfyui("gguf_cases", tmp_path, tmp_path, PACK)
    dit = native_wan.native_dit()
    dit.load_state_dict(found["weights"], strict=False)
    inputs = {name: given[name] for name in ("latents", "timestep", "text", "condition", "clip")}
    with torch.no_grad():
        assert apart(found["base"], dit(**inputs)) < 5e-5
        with attach(dit, native_wan.native_bank(dit), native_wan.native_gate(dit), "naive"):
            expected = dit(**inputs, audio=AudioTokens(given["tokens"], given["lengths"]))
    for strategy in ("stacked", "merged"):
        assert apart(found[strategy], expected) < 5e-5, strategy
    assert torch.equal(found["base again"], found["base"])
