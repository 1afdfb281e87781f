"""Weights anybody can make again, without a random generator: for networks whose outputs elsewhere are known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def planted(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of sines, of a size that neither grows nor vanishes from layer to layer; variances stay positive."""
    count = torch.Size(shape).numel()
    phase = sum(name.encode()) % 97
    wave = torch.sin(torch.arange(count, dtype=torch.float64) ** 1.5 + phase).reshape(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return (1 + 0.5 * wave).float()
    return (wave * (2 / (count / shape[0])) ** 0.5 if len(shape) > 1 else 0.1 * wave).float()


def planted_state(make) -> dict[str, Tensor]:
    """The state dict of a network, planted."""
    with torch.device("meta"):
        network: nn.Module = make()
    return {name: planted(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}


def planted_file(make, path: Path) -> Path:
    """The same in a torch file."""
    torch.save(planted_state(make), path)
    return path


def layout(state: Mapping[str, Tensor]) -> str:
    """sha256 of `name [shape]`, sorted, a line each."""
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
