"""The miniature's transformer inside the real ComfyUI: its native Wan class reads the shipped file. Skipped without it.

COMFYUI_DIR and COMFYUI_PYTHON say where ComfyUI and its interpreter are; otherwise ~/comfy/ComfyUI and its .venv.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from fantasy_core.miniature import load_components
from fantasy_core.miniature.components import WEIGHTS

COMFYUI = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
PYTHON = Path(os.environ.get("COMFYUI_PYTHON") or COMFYUI / ".venv" / "bin" / "python")

# torchvision's CUDA build does not import beside CPU torch unless two operators are declared by hand
NATIVE = """
import sys
folder, model, inputs, output = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, folder)
import torch
vision = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    vision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    vision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd
patcher = comfy.sd.load_diffusion_model(model, model_options={"dtype": torch.float32})
given = torch.load(inputs, weights_only=True)
with torch.no_grad():
    velocity = patcher.model.diffusion_model(torch.cat([given["latents"], given["condition"]], 1), given["timestep"], given["text"])
torch.save(velocity, output)
"""  # noqa: E501


@pytest.fixture
def comfyui_python():
    if not (COMFYUI / "comfy").is_dir() or not PYTHON.exists():
        pytest.skip(f"no ComfyUI at {COMFYUI} with an interpreter at {PYTHON}; set COMFYUI_DIR and COMFYUI_PYTHON")
    return PYTHON


@pytest.mark.comfy
def test_comfyui_reads_the_miniature_as_a_native_wan_model(tmp_path, comfyui_python):
    """Sizes come from the file's shapes and metadata; the velocity is WanDiT's up to the order of fp32 sums."""
    components, generator = load_components(), torch.Generator().manual_seed(0)
    given = {
        "latents": torch.randn(1, 16, 5, 8, 8, generator=generator),
        "condition": torch.randn(1, 20, 5, 8, 8, generator=generator),
        "timestep": torch.tensor([700.5]),
        "text": components.text([""]),
    }
    torch.save(given, tmp_path / "inputs.pt")
    files = [str(WEIGHTS / "base.safetensors"), str(tmp_path / "inputs.pt"), str(tmp_path / "velocity.pt")]
    subprocess.run([comfyui_python, "-c", NATIVE, str(COMFYUI), *files], check=True, timeout=300, cwd=tmp_path)
    with components.dit() as dit, torch.inference_mode():
        expected = dit(**given)
    found = torch.load(tmp_path / "velocity.pt", weights_only=True)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
