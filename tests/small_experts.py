"""Random experts that fit a host: every linear's change is a few percent of what the linear puts out."""

from __future__ import annotations

import torch
from torch import nn

from fantasy_core.experts import Expert, ExpertBank, LowRank
from fantasy_core.fusion.hosts import LINEARS, host_of, split_address

CHANGE = 0.03  # size of a change, relative to the linear's output


def random_pair(linear: nn.Linear, rank: int, generator: torch.Generator, scale: float = 1.0) -> LowRank:
    """scale * B A with A of std in^-1/2 and B so that the change has CHANGE times the rms of the linear's weight."""
    size = linear.weight.detach().float().square().mean().sqrt().item() * linear.in_features**0.5 or 1.0
    A = torch.randn(rank, linear.in_features, generator=generator) * linear.in_features**-0.5
    B = torch.randn(linear.out_features, rank, generator=generator) * CHANGE * size * rank**-0.5
    return LowRank(A, B, scale)


def random_expert(host, name: str = "mn", rank: int = 4, seed: int = 0, linears=LINEARS, scale: float = 1.0) -> Expert:
    """An expert of this rank on those of `linears` that the host has, fp32; `scale` is its alpha/r."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        address: random_pair(linear, rank, generator, scale)
        for address, linear in host_of(host).linears.items()
        if split_address(address)[1] in linears
    }
    return Expert(name, pairs)


def random_bank(host, ranks=(4, 4, 4), names=("mn", "ls", "vq"), seed: int = 0, **kw) -> ExpertBank:
    """A bank of random experts, one for each rank and name; `kw` goes to `random_expert`."""
    experts = [
        random_expert(host, name, rank, 1000 * seed + i, **kw)
        for i, (name, rank) in enumerate(zip(names, ranks, strict=True))
    ]
    return ExpertBank.stack(experts, host)
