"""A metric's network from the file its makers published: opened without running it, checked, hashed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..manifest import sha256
from ..media import check_file
from ..weights.files import Lazy, TensorSet, open_tensors
from ..weights.strict import fill

Net = TypeVar("Net", bound=nn.Module)
COUNT = "num_batches_tracked"  # of training, unused here; files older than torch 0.4.1 have none


def open_network(make: Callable[[], Net], path: str | Path, what: str, device: str = "cpu") -> tuple[Net, str]:
    """(network in eval mode and float32, sha256 of the file). Raises UserError for a file that is absent, damaged,
    holds more than tensors, or is of another model."""
    path = check_file(path, f"weights of {what}")
    tensors = _with_counts(open_tensors(path))
    with torch.device("meta"):
        network = make()
    fill(network, tensors, what, device=device, dtype=_type)
    return network, sha256(path)


def _type(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(COUNT) else torch.float32


def _with_counts(tensors: TensorSet) -> TensorSet:
    counts = {name.removesuffix("running_mean") + COUNT for name in tensors.entries if name.endswith("running_mean")}
    zero = Lazy((), torch.int64, lambda: torch.zeros((), dtype=torch.int64))
    return TensorSet(tensors.path, dict.fromkeys(counts, zero) | tensors.entries, tensors.metadata)
