"""The heat map of a gate for the page: from the table that every gate file holds, without its base or its experts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from fantasy_core.flow import schedule, timestep
from fantasy_core.gate import weights_at
from fantasy_core.gate_files import load_gate
from fantasy_core.gate_plot import draw_gate
from fantasy_core.weights import open_tensors

LEVELS = 25  # noise levels at even distances, whatever schedule a video is sampled with


def gate_picture(path: Path) -> dict[str, Any]:
    """The PNG and what to say of it. Raises UserError for a file that is no gate."""
    try:
        hashes = dict(json.loads(open_tensors(path).metadata["gate.experts"]))
    except (KeyError, ValueError, TypeError):
        hashes = {}  # load_gate says what is wrong
    gate, sigmas = load_gate(path, hashes=hashes, as_table=True), schedule(LEVELS, 1.0)
    times = torch.tensor([timestep(float(sigma)) for sigma in sigmas[:-1]])
    with torch.no_grad():
        picture, buffer = draw_gate(weights_at(gate, times), tuple(hashes), sigmas), io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    about = f"{path.name}: how much each expert counts in each block, from pure noise (left) to the finished video."
    return {"about": about, "png": buffer.getvalue()}
