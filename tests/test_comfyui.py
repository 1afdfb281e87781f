"""The miniature's transformer inside the real ComfyUI, whose native Wan class reads the shipped file."""

from __future__ import annotations

import pytest
import torch
from comfyui import inside_comfyui

from fantasy_core.miniature import load_components
from fantasy_core.miniature.components import WEIGHTS


@pytest.mark.comfy
def test_comfyui_reads_the_miniature_as_a_native_wan_model(tmp_path):
    """Sizes come from the file's shapes and metadata; the velocity is WanDiT's up to the order of fp32 sums."""
    components, generator = load_components(), torch.Generator().manual_seed(0)
    given = {
        "latents": torch.randn(1, 16, 5, 8, 8, generator=generator),
        "condition": torch.randn(1, 20, 5, 8, 8, generator=generator),
        "timestep": torch.tensor([700.5]),
        "text": components.text([""]),
    }
    torch.save(given, tmp_path / "inputs.pt")
    found = inside_comfyui("miniature_velocity", tmp_path, WEIGHTS / "base.safetensors", tmp_path / "inputs.pt")[
        "velocity"
    ]
    with components.dit() as dit, torch.inference_mode():
        expected = dit(**given)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
