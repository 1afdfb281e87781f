"""From the gate's weights w [..., J, M, E] to what every linear multiplies its ranks with, c [..., R]: all in one
product, since there are hundreds of linears."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .hosts import AUDIO_LINEARS, LINEARS, split_address

if TYPE_CHECKING:
    from ..experts import ExpertBank

ORDER = LINEARS + AUDIO_LINEARS  # of the M linears of a block in w [B, J, M, E]


class RankPlaces:
    """Of every rank of every linear of a bank, one linear after another: block, linear of the block, expert, scale."""

    def __init__(self, bank: ExpertBank, device: torch.device):
        rows, addresses = bank.rows.values(), [split_address(address) for address in bank.rows]
        self.sizes = [len(held.scale) for held in rows]
        last = max(ORDER.index(name) for _, name in addresses)
        self.linears = {1, len(ORDER), *[len(LINEARS)] * (last < len(LINEARS))}  # what M may be
        with torch.inference_mode(False):  # they are saved for backward passes
            repeats = torch.tensor(self.sizes)
            self.block = torch.tensor([n for n, _ in addresses]).repeat_interleave(repeats).to(device)
            places = torch.tensor([ORDER.index(name) for _, name in addresses])
            self.linear = places.repeat_interleave(repeats).to(device)
            self.expert = torch.cat([held.owner for held in rows]).to(device)
            self.scale = torch.cat([held.scale for held in rows]).to(device)

    def to(self, device: torch.device) -> RankPlaces:
        """The same on another device."""
        moved = copy.copy(self)
        for name in ("block", "linear", "expert", "scale"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def coefficients(self, w: Tensor) -> tuple[Tensor, ...]:
        """w [J, M, E], or [B, J, M, E] -> c [R] or [B, R] of each linear, as `Rows.coefficients` makes it, fp32."""
        places = (self.block, self.linear, self.expert, self.scale)
        block, linear, expert, scale = (tensor.to(w.device, non_blocking=True) for tensor in places)
        w = w.to(torch.promote_types(w.dtype, torch.float32))
        c = w[..., block, linear if w.shape[-2] > 1 else 0, expert] * scale  # [..., ranks of all linears]
        return c.split(self.sizes, dim=-1)
