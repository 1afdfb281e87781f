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
SCRIPTS = Path(__file__).parent / "inside_comfyui"


def need_comfyui() -> None:
    """Skip the test where there is none."""
    if not (COMFYUI / "comfy").is_dir() or not PYTHON.exists():
        pytest.skip(f"no ComfyUI at {COMFYUI} with an interpreter at {PYTHON}; set COMFYUI_DIR and COMFYUI_PYTHON")


def inside_comfyui(script: str, folder: Path, *files: Path) -> dict:
    """Run `inside_comfyui/{script}.py`, which finds `files` and leaves a dict -> that dict. Skips without ComfyUI."""
    need_comfyui()
    command = [PYTHON, SCRIPTS / f"{script}.py", COMFYUI, folder / "found.pt", *files]
    result = subprocess.run(command, timeout=600, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        pytest.fail(f"{script}.py failed inside ComfyUI:\n{result.stderr[-3000:]}", pytrace=False)
    return torch.load(folder / "found.pt", weights_only=True)
