"""Runs a script inside the real ComfyUI, with its own interpreter. COMFYUI_DIR and COMFYUI_PYTHON say where they are;
otherwise ~/comfy/ComfyUI and its .venv."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

COMFYUI = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
PYTHON = Path(os.environ.get("COMFYUI_PYTHON") or COMFYUI / ".venv" / "bin" / "python")

# torchvision's CUDA build does not import beside CPU torch unless two operators are declared by hand
OPENING = """
import sys
folder, output, *files = sys.argv[1:]
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
"""


def inside_comfyui(script: str, folder: Path, *files: Path) -> dict:
    """Run `script`, which finds `files` and leaves a dict `found` -> that dict. Skips the test without ComfyUI."""
    if not (COMFYUI / "comfy").is_dir() or not PYTHON.exists():
        pytest.skip(f"no ComfyUI at {COMFYUI} with an interpreter at {PYTHON}; set COMFYUI_DIR and COMFYUI_PYTHON")
    command = [PYTHON, "-c", f"{OPENING}{script}\ntorch.save(found, output)", COMFYUI, folder / "found.pt", *files]
    subprocess.run(command, check=True, timeout=300, cwd=folder)
    return torch.load(folder / "found.pt", weights_only=True)
