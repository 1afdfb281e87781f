"""Fill a model that was built on the meta device from a TensorSet: all tensors there, none left over, shapes equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from tqdm import tqdm

from ..errors import UserError, some
from .files import TensorSet

PROGRESS_BYTES = 2**30  # models beyond this size show a progress bar while they load


def check(expected: Mapping[str, torch.Tensor], tensors: TensorSet, what: str) -> None:
    """Compare names and shapes; `expected` maps names to (meta) tensors. Raises UserError with some differences."""
    missing, unexpected = expected.keys() - tensors.entries.keys(), tensors.entries.keys() - expected.keys()
    if missing or unexpected:
        raise UserError(
            f"{tensors.path} is not a complete {what}",
            got=f"missing: {some(missing) or 'none'}; unexpected: {some(unexpected) or 'none'}",
            expected=f"the {len(expected)} tensors of this {what} and no others",
            do="check that the file is of this model and was fetched whole",
        )
    pairs = {name: (tuple(tensor.shape), tensors.entries[name].shape) for name, tensor in expected.items()}
    wrong = {name: (want, got) for name, (want, got) in pairs.items() if want != got}
    if wrong:
        raise UserError(
            f"{tensors.path} has tensors of other shapes than this {what}",
            got=some(f"{name} {list(got)}" for name, (_, got) in wrong.items()),
            expected=some(f"{name} {list(want)}" for name, (want, _) in wrong.items()),
            do="use weights and configuration of the same model size",
        )


def fill(
    model: nn.Module,
    tensors: TensorSet,
    what: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Callable[[str], torch.dtype] | None = None,
) -> nn.Module:
    """Give `model` (on meta) the tensors, one after another, each converted once; returns it frozen and in eval mode.

    A tensor that is already on `device` in `dtype` stays the memory-mapped file itself. `dtype` may be a rule by name;
    None keeps the types of the file. Raises UserError like `check`.
    """
    expected = model.state_dict()
    check(expected, tensors, what)
    rule = dtype if callable(dtype) else lambda name: dtype
    large = sum(t.numel() for t in expected.values()) > PROGRESS_BYTES // 2
    state, read = {}, {}
    for name in tqdm(expected, desc=f"loading {what}", unit="tensor", disable=None if large else True):
        lazy = tensors.entries[name]
        if id(lazy) not in read:  # tied weights are one entry under two names: they stay one tensor
            read[id(lazy)] = lazy.read().to(device=device, dtype=rule(name))
        state[name] = read[id(lazy)]
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()
