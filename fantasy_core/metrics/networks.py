"""A metric's network from the file its makers published: opened without running it, checked, hashed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from ..manifest import sha256
from ..media import check_file
from ..weights.files import Lazy, TensorSet, open_tensors
from ..weights.strict import fill

Net = TypeVar("Net", bound=nn.Module)
Thing = TypeVar("Thing")
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


class Held(Generic[Thing]):
    """What a context manager gives, entered at the first `open()` and left when this goes: loaded once, for all
    videos."""

    def __init__(self, enter: Callable[[], AbstractContextManager[Thing]]):
        self._enter, self._given = enter, []

    def open(self) -> Thing:
        if not self._given:
            with ExitStack() as entered:
                self._given.append(entered.enter_context(self._enter()))
                weakref.finalize(self, entered.pop_all().close)
        return self._given[0]


def _type(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(COUNT) else torch.float32


def _with_counts(tensors: TensorSet) -> TensorSet:
    counts = {name.removesuffix("running_mean") + COUNT for name in tensors.entries if name.endswith("running_mean")}
    zero = Lazy((), torch.int64, lambda: torch.zeros((), dtype=torch.int64))
    return TensorSet(tensors.path, dict.fromkeys(counts, zero) | tensors.entries, tensors.metadata)
