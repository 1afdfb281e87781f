"""Experts and the stacked bank that runs them.

An expert is a LoRA on the linears of every block: dh_i = B_i A_i x, with one expert each for motion naturalness, lip
sync and visual quality in the paper, and any number of any LoRAs here. The bank stacks all experts of a linear along
the rank, so that Eq. 4 is two products whatever their number:

    h' = h + sum_i w_i B_i A_i x = h + up^T (c * (down x)),    c = (w_1 ... w_1, w_2 ...) * scale    # Eq. 4
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError, some
from .expert_files import ORDER, Expert, LowRank, load_expert, save_expert, to_kohya, to_peft
from .fusion.hosts import AUDIO_LINEARS, Host, host_of, split_address

__all__ = ["Expert", "ExpertBank", "LowRank", "Rows", "averaged", "load_expert", "save_expert", "to_kohya", "to_peft"]


class Rows(nn.Module):
    """All experts of one linear, stacked along the rank: down [R, in], up [R, out], R = sum of the experts' ranks.

    Expert i has rows offsets[i] to offsets[i+1], so each is a view. `owner` [R] says whose row it is, `scale` [R] its
    alpha/r.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: Tensor, ranks: tuple[int, ...]):
        super().__init__()
        self.down, self.up = nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)
        self.ranks = ranks
        self.offsets = (0, *torch.tensor(ranks).cumsum(0).tolist())
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("owner", torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks)), persistent=False)

    @classmethod
    def stack(cls, pairs: Iterable[LowRank | None], size_in: int, size_out: int) -> Rows:
        """Stack the experts' changes of one linear, some of which may be None (absent, rank 0)."""
        pairs = list(pairs)
        like = next((pair.A for pair in pairs if pair), torch.empty(0))  # absent ones must not change the dtype
        pairs = [pair or LowRank(like.new_zeros(0, size_in), like.new_zeros(size_out, 0)) for pair in pairs]
        scale = torch.cat([torch.full((pair.rank,), pair.scale) for pair in pairs])
        down, up = torch.cat([pair.A for pair in pairs]), torch.cat([pair.B.T for pair in pairs])
        return cls(down, up, scale, tuple(pair.rank for pair in pairs))

    def coefficients(self, w: Tensor) -> Tensor:
        """Gate weights w [..., E] -> rank coefficients c [..., R], fp32: weight of its expert times scale, by row."""
        return w.float()[..., self.owner] * self.scale

    def of(self, expert: int) -> LowRank:
        """Views of one expert's A [r, in] and B [out, r]."""
        rows = slice(self.offsets[expert], self.offsets[expert + 1])
        scale = self.scale[rows]
        return LowRank(self.down[rows], self.up[rows].T, float(scale[0]) if len(scale) else 1.0)


class ExpertBank(nn.Module):
    """E experts over the linears of a host, stacked: `rows[address]`; only linears that some expert changes are there.

    Parameters are frozen unless asked otherwise (`requires_grad_`, or a row's slice in training). `hashes[name]` is
    `Expert.hash` as it was when the expert was stacked, which a gate file remembers.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        rows: Mapping[str, Rows],
        metadata: Mapping[str, Mapping[str, str]],
        hashes: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.names, self.metadata = names, dict(metadata)
        self.addresses = tuple(rows)
        self._rows = nn.ModuleDict({address.replace(".", "/"): held for address, held in rows.items()})
        self.hashes = {name: self.expert(name).hash for name in names} if hashes is None else dict(hashes)

    @property
    def rows(self) -> dict[str, Rows]:
        return dict(zip(self.addresses, self._rows.values(), strict=True))

    @classmethod
    def load(
        cls,
        paths: Iterable[str | Path] | Mapping[str, str | Path],
        host: nn.Module | Host,
        *,
        ignore_unsupported: bool = False,
    ) -> ExpertBank:
        """Load expert files or any Wan LoRAs ([path, ...], or {name: path}) and stack them for a host.

        Raises UserError like `load_expert` and `stack`.
        """
        named = paths.items() if isinstance(paths, Mapping) else [(None, path) for path in paths]
        return cls.stack([load_expert(path, name, ignore_unsupported=ignore_unsupported) for name, path in named], host)

    @classmethod
    def stack(cls, experts: Iterable[Expert], host: nn.Module | Host) -> ExpertBank:
        """Stack experts for a host. Raises UserError for duplicate names and for linears that the host lacks or that
        have another width there."""
        experts, shapes = list(experts), host_of(host).shapes()
        _check_names([expert.name for expert in experts])
        for expert in experts:
            _check_fit(expert, shapes)
        changed = [address for address in shapes if any(address in expert.pairs for expert in experts)]
        rows = {
            address: Rows.stack([expert.pairs.get(address) for expert in experts], *shapes[address])
            for address in changed
        }
        names = tuple(expert.name for expert in experts)
        return cls(names, rows, {e.name: e.metadata for e in experts}, {e.name: e.hash for e in experts})

    def place(self, device: str | torch.device, dtype: torch.dtype | None = None) -> ExpertBank:
        """The same experts on a device and in a dtype (None: as they are), frozen; scales stay fp32, hashes those of
        the files. What needs no conversion is shared with this bank."""
        rows = {}
        for address, held in self.rows.items():
            down, up = (t.detach().to(device, dtype or t.dtype) for t in (held.down, held.up))
            rows[address] = Rows(down, up, held.scale, held.ranks).to(device)
        return ExpertBank(self.names, rows, self.metadata, self.hashes)

    def expert(self, name: str) -> Expert:
        """One expert as views into the bank."""
        index = self.names.index(name)
        pairs = {address: rows.of(index) for address, rows in self.rows.items() if rows.ranks[index]}
        return Expert(name, pairs, self.metadata.get(name, {}))


def averaged(bank: ExpertBank, weights: Tensor) -> Expert:
    """One static LoRA that stands for the gated experts on hosts without a gate: sum_i w_i B_i A_i, ranks stacked.

    weights [E], or [J, M, E] (a gate's weights averaged over timesteps; J or M may be 1), all fp32. Experts without
    weight at a linear are left out there. Raises UserError for weights of another shape, and when nothing is left.
    """
    of_linear, pairs = _per_linear(bank, weights), {}
    for address, rows in bank.rows.items():
        c = rows.coefficients(of_linear[address].to(rows.scale.device))  # [R]
        kept = c != 0
        if kept.any():
            up = (rows.up.detach()[kept].float() * c[kept, None]).to(rows.up.dtype)  # [R', out]
            pairs[address] = LowRank(rows.down.detach()[kept], up.T)
    if not pairs:
        what, expected = "the average of these experts changes nothing", "some weight other than 0"
        raise UserError(what, got="weights of 0", expected=expected, do="use the model without experts")
    return Expert("averaged", pairs, {"tlpo.experts": json.dumps([[name, bank.hashes[name]] for name in bank.names])})


def _per_linear(bank: ExpertBank, weights: Tensor) -> dict[str, Tensor]:
    """Weights [E] of every linear of the bank, from [E] or [J, M, E]."""
    w = weights.detach().float()
    w = w[None, None] if w.ndim == 1 else w
    places = {address: split_address(address) for address in bank.rows}
    blocks = 1 + max(block for block, _ in places.values())
    linears = 1 + max(ORDER.index(name) for _, name in places.values())
    fits = w.ndim == 3 and w.shape[2] == len(bank.names)
    if not fits or (w.shape[0] != 1 and w.shape[0] < blocks) or (w.shape[1] != 1 and w.shape[1] < linears):
        raise UserError(
            "the weights do not fit these experts",
            got=f"shape {list(weights.shape)}",
            expected=f"[{len(bank.names)}], or [{blocks}, 1 or {linears}, {len(bank.names)}]: blocks, linears, experts",
            do="give a weight for every expert",
        )
    w = w.expand(max(w.shape[0], blocks), max(w.shape[1], linears), -1)
    return {address: w[block, ORDER.index(name)] for address, (block, name) in places.items()}


def _check_names(names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(
            "two experts have the same name",
            got=some(twice),
            expected="every name once",
            do="give each a name of its own",
        )


def _check_fit(expert: Expert, shapes: Mapping[str, tuple[int, int]]) -> None:
    absent = expert.pairs.keys() - shapes.keys()
    if absent:
        silent = all(split_address(address)[1] in AUDIO_LINEARS for address in absent)
        raise UserError(
            f"expert {expert.name} changes linears that this model lacks",
            got=some(absent),
            expected=f"linears of {1 + max(split_address(address)[0] for address in shapes)} blocks",
            do="load the model with FantasyTalking's weights: this expert changes its audio attention"
            if silent and not any(address.endswith(AUDIO_LINEARS) for address in shapes)
            else "use an expert made for this model",
        )
    widths = {address: (pair.A.shape[1], pair.B.shape[0]) for address, pair in expert.pairs.items()}
    wrong = [address for address, width in widths.items() if width != shapes[address]]
    if wrong:
        raise UserError(
            f"expert {expert.name} is of another width than this model",
            got=some("{} {} -> {}".format(address, *widths[address]) for address in wrong),
            expected=some("{} {} -> {}".format(address, *shapes[address]) for address in wrong),
            do="use an expert made for this model",
        )
