"""Eq. 4 by its definition in fp64, for every linear of a host as it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fantasy_core.experts import ExpertBank
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, host_of
from fantasy_core.fusion.hosts import split_address
from fantasy_core.gate import FusionGate


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What goes into each linear and comes out, {address: (x, y)}, of the last forward within the context."""
    seen, hooks = {}, []
    for address, linear in host_of(model).linears.items():

        def keep(module, args, y, address=address):
            seen[address] = args[0].detach().clone(), y.detach().clone()

        hooks.append(linear.register_forward_hook(keep))
    yield seen
    for hook in hooks:
        hook.remove()


def defined(linear: nn.Linear, x: Tensor, bank: ExpertBank, address: str, w: Tensor) -> Tensor:
    """y = W x + bias + sum_i w_i scale_i B_i (A_i x) in fp64, sample by sample; w [B, J, M, E] or [1, J, M, E]."""
    (block, name), x = split_address(address), x.double()
    m = (LINEARS + AUDIO_LINEARS).index(name) if w.shape[2] > 1 else 0
    y = x @ linear.weight.detach().double().T
    if linear.bias is not None:
        y = y + linear.bias.detach().double()
    for i in range(len(bank.names)):
        pair = bank.rows[address].of(i)
        change = x @ pair.A.detach().double().T @ pair.B.detach().double().T
        y = y + w[:, block, m, i].detach().double().view(-1, 1, 1) * pair.scale * change
    return y


def errors(model: nn.Module, bank: ExpertBank, w: Tensor, seen: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """max |y - definition| / max |definition| of every linear that ran."""
    linears, found = host_of(model).linears, {}
    for address, (x, y) in seen.items():
        reference = defined(linears[address], x, bank, address, w)
        found[address] = ((y.double() - reference).abs().max() / reference.abs().max()).item()
    return found


def random_gate(host, bank: ExpertBank, granularity: str = "module", seed: int = 5) -> FusionGate:
    """The paper's gate with random weights, by default another for every linear of a block."""
    host, generator = host_of(host), torch.Generator().manual_seed(seed)
    count = len(LINEARS + AUDIO_LINEARS) if granularity == "module" else 1
    gate = FusionGate(host.num_blocks, host.dim, len(bank.names), granularity, True, count, names=bank.names)
    for parameter in gate.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return gate


def constant(*weights: float, blocks: int = 2):
    """A gate that says the same at all times: w [B, J, 1, E]."""
    return lambda t_emb, timestep: torch.tensor(weights).expand(len(timestep), blocks, 1, -1)
